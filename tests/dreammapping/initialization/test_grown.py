from __future__ import annotations

import pytest
import torch
from dreammapping.initialization import ColoredMesh, grown_points
from dreammapping.initialization.grown import COLOR_NOISE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mesh(vertices: torch.Tensor) -> ColoredMesh:
    colors = torch.linspace(0, 0.9, len(vertices))[:, None].expand(-1, 3).contiguous()
    return ColoredMesh(vertices, torch.tensor([[0, 1, 2]]), colors)


VERTICES = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1.05, 0, 0], [0, 3, 0]])


def test_exactly_as_many_as_asked_all_near_a_vertex():
    cloud = grown_points(mesh(VERTICES), 3001, generator(), distance=0.1)
    assert cloud.points.shape == cloud.colors.shape == (3001, 3)
    assert torch.cdist(cloud.points, VERTICES).amin(1).max() <= 0.1 + 1e-6


def test_points_are_uniform_in_the_union_of_the_balls():
    """Two overlapping balls and two single ones: regions get points by their volumes."""
    count, radius, apart = 40_000, 0.1, 0.05
    points = grown_points(mesh(VERTICES), count, generator(), distance=radius).points
    ball = 4 / 3 * torch.pi * radius**3
    overlap = torch.pi * (4 * radius + apart) * (2 * radius - apart) ** 2 / 12  # of two balls, their centers `apart`
    near = torch.cdist(points.double(), VERTICES.double()) <= radius
    regions = torch.stack([near[:, 0], near[:, 3], near[:, 1] & near[:, 2], near[:, 1] ^ near[:, 2]]).sum(1).double()
    volumes = torch.tensor([ball, ball, overlap, 2 * (ball - overlap)], dtype=torch.float64)
    expected = count * volumes / volumes.sum()
    assert ((regions - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom, p = 0.001


def test_the_color_is_the_nearest_vertex_s_with_noise():
    cloud = grown_points(mesh(VERTICES), 4000, generator(), distance=0.1)
    nearest = torch.cdist(cloud.points.double(), VERTICES.double()).argmin(1)
    noise = cloud.colors - mesh(VERTICES).colors[nearest]
    assert noise.min() > -1e-6 and cloud.colors.max() <= 1
    dark = noise[nearest == 0]
    assert dark.max() == pytest.approx(COLOR_NOISE, abs=0.01) and dark.mean() == pytest.approx(COLOR_NOISE / 2, abs=0.01)
    assert not torch.equal(dark[:, 0], dark[:, 1])


def test_the_generator_decides():
    first, again, other = (grown_points(mesh(VERTICES), 100, generator(s), distance=0.1) for s in (0, 0, 1))
    assert torch.equal(first.points, again.points) and torch.equal(first.colors, again.colors)
    assert not torch.equal(first.points, other.points)
