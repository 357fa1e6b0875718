"""The rasterizer in texture space against brute force over all texels and triangles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threestudio.utils.texels import MARGIN, surface_points


def patches():
    """Two charts: a jittered grid, and a mirrored triangle apart from it. Texture coordinates, faces."""
    generator = np.random.default_rng(0)
    line = np.linspace(0.08, 0.55, 6)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1) + generator.uniform(-0.02, 0.02, (6, 6, 2))
    number = np.arange(36).reshape(6, 6)
    a, b, c, d = number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]
    faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    uv = np.concatenate([grid.reshape(-1, 2), [[0.7, 0.2], [0.75, 0.9], [0.95, 0.3]]])
    return uv, np.concatenate([faces, [[36, 37, 38]]])


def brute_force(uv, faces, height, width):
    """Nearest chart point [H, W, 2] in texture coordinates and its distance [H, W] in texels, float64."""
    size = np.array([width, height])
    y, x = np.mgrid[:height, :width]
    p = np.stack([x, y], -1)[:, :, None] + 0.5  # [H, W, 1, 2]
    t = (uv * size)[faces]
    best, where = np.full((height, width), np.inf), np.zeros((height, width, 2))
    inside = np.ones((height, width, len(faces)), dtype=bool)
    u, v = t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]
    turn = np.sign(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
    for k in range(3):
        a, b = t[:, k], t[:, (k + 1) % 3]
        inside &= turn * ((b - a)[:, 0] * (p - a)[..., 1] - (b - a)[:, 1] * (p - a)[..., 0]) >= 0
        s = (((p - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(-1)).clip(0, 1)
        q = a + s[..., None] * (b - a)
        distance = np.linalg.norm(p - q, axis=-1)
        nearest = distance.argmin(-1)
        closer = distance.min(-1) < best
        best = np.where(closer, distance.min(-1), best)
        where[closer] = np.take_along_axis(q, nearest[..., None, None], axis=2)[:, :, 0][closer]
    covered = inside.any(-1)
    where[covered] = p[:, :, 0][covered]
    return where / size, np.where(covered, 0.0, best)


@pytest.mark.parametrize("height, width", [(40, 40), (31, 57)])
def test_every_texel_gets_the_nearest_chart_point(height, width):
    uv, faces = patches()
    points = surface_points(torch.tensor(uv), torch.tensor(faces), height, width)
    expected, distance = brute_force(uv, faces, height, width)
    assert np.array_equal(points.covered.numpy(), distance <= MARGIN)
    assert 0.2 < (distance == 0).mean() < 0.5 and (distance[points.covered] > 0).sum() > 100
    found = points.interpolate(torch.tensor(uv), torch.tensor(faces)).numpy()
    error = np.abs(found - expected[points.covered.numpy()]) * [width, height]
    assert error.max() < 2e-3
    assert points.weights.min() >= 0 and torch.allclose(points.weights.sum(-1), torch.ones(()).double())


def test_single_precision_leaves_no_gaps_between_faces():
    n = 33  # vertices fall on texel centers, so every edge runs through some
    line = (torch.arange(n) + 0.5) / 64
    uv = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    number = torch.arange(n * n).reshape(n, n)
    a, b, c, d = number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]
    faces = torch.cat([torch.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    points = surface_points(uv, faces, 64, 64, margin=0.0)
    assert points.covered[:n, :n].all() and points.covered.sum() == n * n
    centers = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    assert torch.allclose(points.interpolate(uv, faces), centers, atol=1e-5)


def test_a_chart_between_texel_centers_still_gets_texels():
    uv = torch.tensor([[0.3, 0.111], [0.7, 0.111], [0.7, 0.112], [0.1, 0.6], [0.9, 0.6], [0.9, 0.9]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    points = surface_points(uv, faces, 10, 10)
    rows = points.covered.nonzero()[:, 0]
    assert (points.face[rows < 3] == 0).all() and (rows < 3).sum() >= 4  # its line passes between rows 0 and 1


def test_faces_without_area_do_no_harm():
    uv = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.5, 0.9], [0.5, 0.5]])
    faces = torch.tensor([[0, 1, 2], [3, 3, 3]])
    points = surface_points(uv, faces, 16, 16)
    assert (points.face == 0).all() and torch.isfinite(points.weights).all()
