"""Samples of the marcher against a plain loop over every step of every ray."""

from __future__ import annotations

import pytest
import torch

from threestudio.models.estimators import marching
from threestudio.models.estimators.marching import expand_counts, intersect_box, march

BOX = torch.tensor([[-1.0, -0.5, -1.0], [1.0, 0.5, 1.5]])


def random_rays(count, length=1.0):
    origins = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * 2.5
    directions = torch.nn.functional.normalize(torch.randn(count, 3) * 0.4 - origins, dim=-1) * length
    return origins, directions


def brute_force(origins, directions, occupied, box, step, t_min, t_max, steps):
    """Boolean [R, steps] of the occupied intervals, and how far [R, steps] each midpoint is from a cell's face."""
    t = t_min[:, None] + (torch.arange(steps) + 0.5) * step
    points = origins[:, None].double() + directions[:, None].double() * t[..., None].double()
    cells = (points - box[0]) / (box[1] - box[0]) * torch.tensor(occupied.shape)
    index = cells.floor().long()
    inside = ((index >= 0) & (index < torch.tensor(occupied.shape))).all(-1)
    index = torch.where(inside[..., None], index, 0)
    kept = occupied[tuple(index.unbind(-1))] & inside & (t < t_max[:, None])
    return kept, (cells - cells.round()).abs().amin(-1)


@pytest.mark.parametrize(
    "step, length, fill", [(0.02, 1.0, 0.1), (0.02, 1.0, 1.0), (0.05, 1.7, 0.02), (0.9, 1.0, 0.3), (0.003, 0.4, 0.05)]
)
def test_marching_equals_brute_force(step, length, fill, monkeypatch):
    monkeypatch.setattr(marching, "_RAYS_AT_ONCE", 16)
    torch.manual_seed(0)
    origins, directions = random_rays(40, length)
    directions[0], origins[0] = torch.tensor([0.0, 0.0, -length]), torch.tensor([0.1, 0.1, 2.0])  # along an axis
    directions[1], origins[1] = torch.tensor([length, 0.0, 0.0]), torch.tensor([-0.3, 0.2, 0.4])  # from the inside
    directions[2] = -directions[2]  # away from the box
    occupied = torch.rand(8, 4, 10) < fill
    t_min, t_max = torch.rand(40) * 0.5, torch.full((40,), 3.3 / length)
    ray, starts, ends = march(origins, directions, occupied, BOX, step, t_min, t_max)
    steps = int(6 / length / step)
    kept, margin = brute_force(origins, directions, occupied, BOX, step, t_min, t_max, steps)
    found = torch.zeros_like(kept)
    k = ((starts - t_min[ray]) / step).round().long()
    found[ray, k] = True
    assert found.sum() == len(ray) > 0  # no sample twice
    # Float32 may see a midpoint on a cell's face on either side of it.
    assert torch.equal(found[margin > 1e-4], kept[margin > 1e-4])
    torch.testing.assert_close(ends - starts, torch.full_like(starts, step), atol=1e-5, rtol=1e-3)
    order = ray * steps + k
    assert (order.diff() > 0).all()


def test_nothing_occupied_no_rays_and_no_direction():
    origins, directions = random_rays(5)
    near, far = torch.zeros(5), torch.full((5,), 1e10)
    nothing = march(origins, directions, torch.zeros(4, 4, 4, dtype=torch.bool), BOX, 0.1, near, far)
    assert all(len(value) == 0 for value in nothing) and nothing.ray_indices.dtype == torch.int64
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    assert all(len(value) == 0 for value in march(origins[:0], directions[:0], full, BOX, 0.1, near[:0], far[:0]))
    assert all(len(value) == 0 for value in march(origins * 0, directions * 0, full, BOX, 0.1, near, far))


def test_box_intersections():
    origins = torch.tensor([[-2.0, 0.0, 0.0], [-2.0, 0.7, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    directions = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    enter, leave = intersect_box(origins, directions, BOX)
    assert enter[[0, 2]].tolist() == [0.5, -1.5] and leave[[0, 2]].tolist() == [1.5, 1.0]
    assert enter[1] > leave[1]
    assert torch.isfinite(enter).all() and torch.isfinite(leave).all()  # the last ray lies in a face


def test_expand_counts():
    owner, number = expand_counts(torch.tensor([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2] and number.tolist() == [0, 1, 0, 1, 2]
