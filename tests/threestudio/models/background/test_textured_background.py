"""The panorama: where its texels are seen, and that it closes."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio import find
from threestudio.errors import ConfigError


def direction(azimuth, polar):
    """Unit vector from degrees; polar is the angle to +z."""
    a, p = math.radians(azimuth), math.radians(polar)
    return torch.tensor([math.sin(p) * math.cos(a), math.sin(p) * math.sin(a), math.cos(p)])[None, None, None]


def build(**config):
    torch.manual_seed(0)
    return find("textured-background")({"height": 8, "width": 4, "color_activation": "none", **config})


def test_texels_are_seen_at_their_centers():
    background = build()
    assert background.texture.shape == (1, 3, 8, 4)
    for row in range(8):
        for column in range(4):
            seen = background(dirs=direction((row + 0.5) / 8 * 360 - 180, (column + 0.5) / 4 * 180))
            torch.testing.assert_close(seen[0, 0, 0], background.texture[0, :, row, column], atol=1e-4, rtol=1e-4)


def test_it_is_continuous_round_the_seam_and_blends_neighbors():
    background = build()
    left, right = (background(dirs=direction(angle, 60.0)) for angle in (-179.999, 179.999))
    torch.testing.assert_close(left, right, atol=1e-3, rtol=0)
    seam = background(dirs=direction(180.0, (1 + 0.5) / 4 * 180))[0, 0, 0]
    expected = (background.texture[0, :, 0, 1] + background.texture[0, :, 7, 1]) / 2
    torch.testing.assert_close(seam, expected, atol=1e-4, rtol=1e-4)


def test_shape_range_and_learning():
    background = build(color_activation="sigmoid", n_output_dims=4)
    dirs = torch.nn.functional.normalize(torch.randn(2, 30, 40, 3), dim=-1)
    color = background(dirs=dirs)
    assert color.shape == (2, 30, 40, 4) and color.min() > 0 and color.max() < 1
    torch.testing.assert_close(background(dirs=dirs * 3), color)
    color.sum().backward()
    assert (background.texture.grad != 0).all()
    default = find("textured-background")({})
    assert default.texture.shape == (1, 3, 64, 64) and default.cfg.color_activation == "sigmoid"
    with pytest.raises(ConfigError, match="width"):
        build(width=0)
