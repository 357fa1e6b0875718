"""Lambert shading in closed form, and when which shading is shown."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio import find
from threestudio.errors import ConfigError, UserError


def build(**config):
    return find("diffuse-with-point-light-material")(config)


def points(count=7):
    torch.manual_seed(0)
    return {
        "features": torch.randn(count, 5),
        "positions": torch.randn(count, 3),
        "shading_normal": torch.nn.functional.normalize(torch.randn(count, 3), dim=-1),
        "light_positions": torch.randn(count, 3) * 3,
        "viewdirs": None,
    }


def lambert(batch):
    """n . l, at least 0, one point after the other."""
    values = []
    for normal, light, place in zip(
        *(batch[key].tolist() for key in ("shading_normal", "light_positions", "positions"))
    ):
        towards = [a - b for a, b in zip(light, place)]
        values.append(max(0.0, sum(a * b for a, b in zip(normal, towards)) / math.hypot(*towards)))
    return torch.tensor(values)[:, None]


def test_shadings_in_closed_form():
    material, batch = build(ambient_light_color=[0.1, 0.2, 0.3], diffuse_light_color=[0.8, 0.7, 0.6]).eval(), points()
    cosine, albedo = lambert(batch), torch.sigmoid(batch["features"][:, :3])
    assert (cosine == 0).any() and (cosine > 0).any()
    light = torch.tensor([0.1, 0.2, 0.3]) + torch.tensor([0.8, 0.7, 0.6]) * cosine
    torch.testing.assert_close(material(**batch), albedo * light)
    torch.testing.assert_close(material(**batch, shading="textureless"), light)
    torch.testing.assert_close(material(**batch, shading="albedo"), albedo)
    torch.testing.assert_close(material(**batch, ambient_ratio=0.3), albedo * (0.3 + 0.7 * cosine))
    assert material.requires_normal and torch.equal(material.export(**batch)["albedo"], albedo)
    bright = build(albedo_activation="none").eval()({**batch, "features": batch["features"] + 9}["features"], **{
        key: batch[key] for key in ("positions", "shading_normal", "light_positions")
    })  # fmt: skip
    torch.testing.assert_close(bright, 0.1 + 0.9 * cosine.expand(-1, 3))  # an albedo is at most 1 under a light


def test_one_light_for_all_and_any_prefix_of_shape():
    material, batch = build().eval(), points(6)
    batch["light_positions"] = torch.tensor([1.0, 2.0, 3.0]).expand(6, 3)
    plain = material(**batch)
    shaped = {key: value if value is None else value.reshape(2, 3, -1) for key, value in batch.items()}
    torch.testing.assert_close(material(**shaped).reshape(6, 3), plain)


def kinds(material, batch, count=400):
    """How often a call shows each shading."""
    shown = {name: material(**batch, shading=name) for name in ("albedo", "textureless", "diffuse")}
    seen = dict.fromkeys(shown, 0)
    for _ in range(count):
        image = material(**batch)
        (name,) = [name for name, value in shown.items() if torch.equal(value, image)]
        seen[name] += 1
    return {name: number / count for name, number in seen.items()}


def test_when_which_shading_is_shown():
    material, batch = build(ambient_only_steps=10, diffuse_prob=0.75, textureless_prob=0.4), points(3)
    material.update_step(0, 9)
    assert kinds(material, batch, 50)["albedo"] == 1.0
    assert torch.equal(material.eval()(**batch), material(**batch, shading="albedo"))
    material.train().update_step(0, 10)
    share = kinds(material, batch)
    assert share["albedo"] == pytest.approx(0.25, abs=0.08)
    assert share["textureless"] == pytest.approx(0.3, abs=0.08) and share["diffuse"] == pytest.approx(0.45, abs=0.08)
    assert kinds(material.eval(), batch, 50)["diffuse"] == 1.0
    assert kinds(build(ambient_only_on_test=True).eval(), batch, 20)["albedo"] == 1.0


def test_soft_shading_splits_the_light_at_random():
    material, batch = build(soft_shading=True, ambient_only_steps=0), points(4)
    cosine, albedo = lambert(batch), torch.sigmoid(batch["features"][:, :3])
    drawn = [material(**batch, shading="textureless")[:, 0] for _ in range(300)]
    row = int(cosine[:, 0].argmin())
    ambient = torch.stack([(image[row] - cosine[row, 0]) / (1 - cosine[row, 0]) for image in drawn])
    assert ambient.min() < 0.05 and ambient.max() > 0.95 and ambient.mean() == pytest.approx(0.5, abs=0.08)
    for image, ratio in zip(drawn[:5], ambient[:5]):
        torch.testing.assert_close(image, ratio + (1 - ratio) * cosine[:, 0])
    torch.testing.assert_close(material.eval()(**batch), albedo * (0.1 + 0.9 * cosine))


def test_every_shading_keeps_all_inputs_in_the_graph():
    for shading in ("albedo", "textureless", "diffuse"):
        batch = points()
        for key in ("features", "shading_normal"):
            batch[key].requires_grad_()
        build()(**batch, shading=shading).sum().backward()
        assert batch["features"].grad is not None and batch["shading_normal"].grad is not None
        assert bool(batch["features"].grad.any()) == (shading != "textureless")
        assert bool(batch["shading_normal"].grad.any()) == (shading != "albedo")


def test_defaults_state_and_errors():
    material = build()
    assert set(material.state_dict()) == {"ambient_light_color", "diffuse_light_color"}
    assert not list(material.parameters()) and material.cfg.ambient_only_steps == 1000
    with pytest.raises(UserError, match="no shading 'difuse'. Did you mean diffuse"):
        material(**points(), shading="difuse")
    with pytest.raises(ConfigError, match="ambient_light_color"):
        build(ambient_light_color="white")
