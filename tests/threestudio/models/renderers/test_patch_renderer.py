"""The patch renderer beside the renderer it wraps."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.fields import BlobField
from threestudio import find
from threestudio.errors import ConfigError
from threestudio.models.renderers.patch_renderer import _random_patch

BASE = {"num_samples_per_ray": 64, "randomized": False, "grid_prune": False}


def build(config=None, base=BASE):
    parts = {
        "geometry": BlobField({}),
        "material": find("no-material")({}),
        "background": find("solid-color-background")({}),
    }
    config = {"base_renderer_type": "nerf-volume-renderer", "base_renderer": base, "patch_size": 8, **(config or {})}
    return find("patch-renderer")(config, **parts), find("nerf-volume-renderer")(base, **parts)


def batch(size=16):
    z, y = torch.meshgrid(torch.linspace(0.8, -0.8, size), torch.linspace(-0.8, 0.8, size), indexing="ij")
    origins = torch.stack([torch.full_like(y, 2.0), y, z], dim=-1)[None]
    return {
        "rays_o": origins,
        "rays_d": torch.tensor([-1.0, 0.0, 0.0]).expand_as(origins),
        "light_positions": torch.tensor([[2.0, 0.0, 0.0]]),
    }


def test_evaluation_equals_the_base_renderer():
    patch, base = build()
    patch.eval(), base.eval()
    one, other = patch(**batch(), bg_color=torch.rand(1, 3)), base(**batch())
    assert set(one) == set(other)
    assert torch.equal(one["opacity"], other["opacity"]) and torch.equal(one["comp_rgb_fg"], other["comp_rgb_fg"])


@pytest.mark.parametrize("per_pixel", [False, True])
def test_training_pastes_a_fine_patch_into_a_coarse_view(per_pixel):
    patch, base = build()
    color = torch.tensor([[0.1, 0.5, 0.9]])
    color = color[:, None, None].expand(1, 16, 16, 3) if per_pixel else color
    fine = base(**batch(), bg_color=color)
    torch.manual_seed(3)
    _, rows, columns = _random_patch(16, 16, 8)
    torch.manual_seed(3)
    out = patch(**batch(), bg_color=color)
    for key in ("comp_rgb", "comp_rgb_fg", "opacity", "depth"):
        assert out[key].shape == fine[key].shape
        same = (out[key] - fine[key]).abs().amax(-1)[0] < 1e-5
        assert same[rows, columns].all() and (~same).sum() > 20
        coarse = torch.nn.functional.avg_pool2d(fine[key].permute(0, 3, 1, 2), 4)
        outside = out[key].permute(0, 3, 1, 2)[..., 2::4, 2::4]
        assert (outside - coarse).abs().mean() < 0.2 * coarse.abs().mean() + 0.05
    assert out["ray_indices"].max() < 16  # samples come from the 4 x 4 view


def test_gradients_with_and_without_the_coarse_view():
    grads = []
    for detach in (False, True):
        patch, _ = build({"global_detach": detach})
        torch.manual_seed(0)
        out = patch(**batch())
        inside = torch.zeros(16, 16, dtype=torch.bool)
        torch.manual_seed(0)
        inside[_random_patch(16, 16, 8)[1:]] = True
        whole = torch.autograd.grad(out["opacity"][0].sum(), patch.geometry.peak, retain_graph=True)[0]
        part = torch.autograd.grad(out["opacity"][0][inside].sum(), patch.geometry.peak)[0]
        grads.append((float(whole), float(part)))
    (whole, part), (detached, detached_part) = grads
    assert detached == pytest.approx(detached_part, rel=1e-5) and part == pytest.approx(detached_part, rel=1e-5)
    assert whole > 1.2 * part > 0


def test_patches_cover_the_image_and_fit_into_small_ones():
    torch.manual_seed(0)
    starts = {(p[1].start, p[2].start) for p in (_random_patch(10, 9, 8) for _ in range(200))}
    assert starts == {(y, x) for y in range(3) for x in range(2)}
    assert _random_patch(4, 20, 8)[1] == slice(0, 4)


def test_parts_box_and_state_belong_to_the_base():
    patch, _ = build({}, {**BASE, "radius": 1.5})
    assert patch.geometry is patch.base_renderer.geometry and patch.bbox[1].tolist() == [1.5] * 3
    assert all(key.startswith("base_renderer.") for key in patch.state_dict())
    other = find("no-material")({})
    patch.set_material(other)
    assert patch.base_renderer.material is other
    pruned, _ = build({}, {"num_samples_per_ray": 64})
    pruned.do_update_step(0, 0)
    assert pruned.base_renderer.estimator.binaries.any()


def test_bad_configs():
    with pytest.raises(ConfigError, match="base_renderer_type"):
        build({"base_renderer_type": ""})
    with pytest.raises(ConfigError, match="patch_size"):
        build({"patch_size": 0})
