"""Backgrounds, materials, and the bases of renderers and exporters."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from threestudio import find
from threestudio.errors import ConfigError
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.renderers.base import Rasterizer, Renderer, VolumeRenderer


def rays(count=3):
    return torch.nn.functional.normalize(torch.randn(count, 4, 5, 3), dim=-1)


def test_solid_color_is_fixed_or_learned():
    fixed = find("solid-color-background")({"color": [0.1, 0.2, 0.3]})
    assert fixed(dirs=rays()).shape == (3, 4, 5, 3) and torch.allclose(
        fixed(dirs=rays())[1, 2, 3], torch.tensor([0.1, 0.2, 0.3])
    )
    assert not list(fixed.parameters()) and "env_color" in fixed.state_dict()
    learned = find("solid-color-background")(OmegaConf.create({"learned": True}))
    learned(dirs=rays()).sum().backward()
    assert learned.env_color.grad.tolist() == [60.0] * 3
    with pytest.raises(ConfigError, match="n_output_dims"):
        find("solid-color-background")({"n_output_dims": 4})


@pytest.mark.parametrize("name", ["solid-color-background", "neural-environment-map-background"])
def test_random_augmentation(name):
    torch.manual_seed(0)
    background = find(name)({"random_aug": True, "random_aug_prob": 0.5})
    dirs = rays()
    background.eval()
    plain = background(dirs=dirs)
    assert torch.equal(plain, background(dirs=dirs))
    background.train()
    drawn = [background(dirs=dirs) for _ in range(200)]
    random = [image for image in drawn if not torch.equal(image, plain)]
    assert 70 < len(random) < 130
    for image in random[:5]:  # one color per item, another for each
        assert torch.equal(image, image[:, :1, :1].expand_as(image)) and not torch.equal(image[0, 0, 0], image[1, 0, 0])
    spread = torch.stack(random)[:, :, 0, 0].flatten()
    assert spread.min() < 0.05 and spread.max() > 0.95
    background.cfg.random_aug_prob = 1.0
    assert all(not torch.equal(background(dirs=dirs), plain) for _ in range(20))
    background.cfg.random_aug_prob = 0.0
    assert torch.equal(background(dirs=dirs), plain)


def test_environment_map_depends_on_direction_and_learns():
    torch.manual_seed(0)
    background = find("neural-environment-map-background")({"eval_color": [0.0, 0.5, 1.0]})
    color = background(dirs=rays())
    assert color.shape == (3, 4, 5, 3) and color.min() > 0 and color.max() < 1 and color.std() > 1e-4
    color.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in background.parameters())
    background.eval()
    assert background(dirs=rays())[2, 3, 4].tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ConfigError, match="eval_color"):
        find("neural-environment-map-background")({"eval_color": [0.0]})


def test_augmented_calls_keep_every_parameter_in_the_graph():
    background = find("neural-environment-map-background")({"random_aug": True, "random_aug_prob": 1.0})
    background(dirs=rays()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in background.parameters())


def test_no_material():
    features = torch.randn(6, 3)
    material = find("no-material")({})
    assert torch.equal(material(features=features, viewdirs=None, positions=None), torch.sigmoid(features))
    assert torch.equal(material.export(features)["albedo"], torch.sigmoid(features)) and not material.requires_normal
    with pytest.raises(ConfigError, match="n_output_dims"):
        material(features=torch.randn(6, 4))
    network = find("no-material")(
        {"input_feature_dims": 5, "mlp_network_config": {"otype": "VanillaMLP"}, "requires_normal": True}
    )
    assert network(features=torch.randn(2, 6, 5)).shape == (2, 6, 3) and network.requires_normal
    with pytest.raises(ConfigError, match="belong together"):
        find("no-material")({"input_feature_dims": 5})
    find("no-material")({"n_output_dims": 0})  # the placeholder of Gaussian configs


@pytest.mark.parametrize("base", [Renderer, VolumeRenderer, Rasterizer])
def test_renderers_see_their_parts_without_owning_them(base):
    parts = {
        "geometry": torch.nn.Linear(2, 2),
        "material": find("no-material")({}),
        "background": find("solid-color-background")({}),
    }
    renderer = base({"radius": 1.5}, **parts)
    assert all(getattr(renderer, name) is part for name, part in parts.items())
    assert list(renderer.state_dict()) == ["bbox"] and renderer.bbox.tolist() == [[-1.5] * 3, [1.5] * 3]
    other = find("no-material")({})
    renderer.set_material(other)
    assert renderer.material is other
    with pytest.raises(TypeError, match="forward"):
        renderer(rays_o=None)


def test_exporters():
    parts = {"geometry": 1, "material": 2, "background": 3}
    assert find("dummy-exporter")({}, **parts)() == []
    exporter = Exporter({"save_video": True}, **parts)
    assert exporter.cfg.save_video and exporter.geometry == 1
    assert ExporterOutput(save_name="a.json", save_type="json", params={}).save_type == "json"
    with pytest.raises(TypeError, match="__call__"):
        exporter()
