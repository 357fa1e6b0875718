from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from dreammapping.errors import DreamMappingError
from dreammapping.gaussians.model import GaussianModel
from dreammapping.initialization import ColoredPoints
from dreammapping.renderer.cameras import intrinsics
from dreammapping.renderer.clamp import StayInRange
from dreammapping.renderer.gaussian_renderer import GaussianRenderer, ray_directions
from omegaconf import OmegaConf

from threestudio.utils.ops import get_ray_directions, get_rays


def gaussians() -> GaussianModel:
    """One, opaque, green, at the origin."""
    cloud = ColoredPoints(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))
    model = GaussianModel.from_points(cloud, opacity=0.99)
    model.params["scales"].data.fill_(math.log(0.1))
    return model


def renderer(geometry, background=lambda dirs: torch.ones_like(dirs), **settings) -> GaussianRenderer:
    return GaussianRenderer(OmegaConf.create(settings), geometry=geometry, material=None, background=background)


def front_camera() -> dict:
    c2w = torch.eye(4)
    c2w[:3] = torch.tensor([[0.0, 0.0, 1.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    return {"c2w": c2w[None], "fovy": torch.tensor([0.8]), "height": 17, "width": 17}


def test_object_in_the_middle_background_in_the_corners():
    out = renderer(SimpleNamespace(gaussians=gaussians()))(**front_camera())
    assert out["comp_rgb"].shape == (1, 17, 17, 3) and out["opacity"].shape == out["depth"].shape == (1, 17, 17, 1)
    assert torch.allclose(out["comp_rgb"][0, 8, 8], torch.tensor([0.01, 1.0, 0.01]), atol=0.01)
    assert torch.equal(out["comp_rgb"][0, 0, 0], torch.ones(3))
    assert out["depth"][0, 8, 8].item() == pytest.approx(2.0, abs=1e-4)
    out["comp_rgb"].sum().backward()


def test_rays_are_computed_when_the_batch_has_none():
    camera = front_camera()
    directions = get_ray_directions(17, 17, float(0.5 * 17 / math.tan(0.4)))
    _, expected = get_rays(directions, camera["c2w"][0], keepdim=True)
    found = ray_directions(camera["c2w"], intrinsics(camera["fovy"], 17, 17), 17, 17)
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_gradient_returns_a_saturated_pixel_but_never_pushes_it_further():
    x = torch.tensor([-0.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    y = StayInRange.apply(x)
    assert torch.equal(y, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    (y * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, -1.0, 1.0, 1.0, 0.0]))


def test_messages_name_the_key():
    with pytest.raises(DreamMappingError, match="geometry_type"):
        renderer(SimpleNamespace())
    with pytest.raises(DreamMappingError, match="renderer.backend"):
        renderer(SimpleNamespace(gaussians=None), backend="cuda")
