from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.system.regularizers import REGULARIZERS

GEOMETRY = SimpleNamespace(
    gaussians=SimpleNamespace(
        get_scales=torch.tensor([[1.0, 2.0, 3.0]]),
        get_opacities=torch.tensor([0.2, 0.4]),
        get_means=torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]),
    )
)


def images(alpha: float = 0.5) -> dict[str, torch.Tensor]:
    """A 2 x 2 view whose right half is one brighter and twice as far."""
    step = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    return {"comp_rgb": step.expand(1, 2, 2, 3), "opacity": torch.full((1, 2, 2, 1), alpha), "depth": 1.0 + step}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tv", 2.0 * 1.0),  # horizontal differences are 1 everywhere, vertical ones 0
        ("depth_tv", 2.0 * 0.25),  # depth times alpha is 0.5 and 1; divided by its greatest, the difference is 0.5
        ("scale", 2.0),
        ("opacity", 0.3),
        ("position", 3.0),
        ("sparsity", math.sqrt(0.26)),
        ("opaque", math.log(2.0)),
    ],
)
def test_value(name, expected):
    assert REGULARIZERS.get(name)(images(), GEOMETRY).item() == pytest.approx(expected, rel=1e-6)


def test_depth_tv_does_not_depend_on_the_unit():
    scaled = images() | {"depth": 10.0 * images()["depth"]}
    depth_tv = REGULARIZERS.get("depth_tv")
    assert depth_tv(scaled, GEOMETRY).item() == pytest.approx(depth_tv(images(), GEOMETRY).item())


def test_an_empty_view_has_no_gradient_explosion():
    depth = torch.zeros(1, 2, 2, 1, requires_grad=True)
    REGULARIZERS.get("depth_tv")(images(0.0) | {"depth": depth}, GEOMETRY).backward()
    assert torch.equal(depth.grad, torch.zeros_like(depth))


@pytest.mark.parametrize("name", REGULARIZERS.names())
def test_missing_ingredients_are_named(name):
    with pytest.raises(ConfigError, match=f"lambda_{name}"):
        REGULARIZERS.get(name)({}, SimpleNamespace())
