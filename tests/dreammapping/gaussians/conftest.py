"""A small scene with an Adam that has already stepped, and what a rasterizer would report of it."""

from __future__ import annotations

import pytest
import torch
from dreammapping.gaussians import GaussianModel, LearningRates, build_adam, parameter_groups


def make_model(count: int, sh_degree: int = 1, seed: int = 0) -> GaussianModel:
    generator = torch.Generator().manual_seed(seed)
    model = GaussianModel(sh_degree, count)
    with torch.no_grad():
        for value in model.params.values():
            value.copy_(torch.randn(value.shape, generator=generator))
        model.params["scales"].sub_(4.0)
        model.params["quats"][:, 0].add_(2.0)
    return model


def make_adam(model: GaussianModel, seed: int = 1) -> torch.optim.Adam:
    """An Adam whose moments differ in every row."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = build_adam(parameter_groups(model, LearningRates().schedules()))
    for value in model.params.values():
        value.grad = torch.randn(value.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def make_info(gradients: torch.Tensor, radii: torch.Tensor, width: int = 64, height: int = 32) -> dict:
    """A rasterizer's info after backward: gradients [C, N, 2] in pixels, radii [C, N, 2]."""
    means2d = torch.zeros_like(gradients, requires_grad=True)
    means2d.grad = gradients
    return {"means2d": means2d, "radii": radii, "width": width, "height": height, "n_cameras": len(gradients)}


@pytest.fixture
def scene():
    return make_model, make_adam, make_info
