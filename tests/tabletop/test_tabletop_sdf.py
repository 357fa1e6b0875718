"""Primitive distances against closed forms, in scenes built through the public Kit."""

from __future__ import annotations

import math

import pytest
import torch

from tabletop.primitives import CUT, EXTRA, GROUP, MAX_PRIMITIVES, Kit
from tabletop.sdf import nearest_primitive, primitive_distances, scene_distance

WHITE = (1.0, 1.0, 1.0)


def kit_with(*calls) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of one unscaled, uncentred scene, random points, and the distances of the first primitive."""
    kit = Kit(1, torch.Generator().manual_seed(0))
    for name, args, kwargs in calls:
        getattr(kit, name)(*args, **kwargs)
    extent = kit._support(torch.cat([torch.eye(3), -torch.eye(3)]))
    middle = 0.5 * (extent[:, :3] - extent[:, 3:])
    size = kit.finish(torch.ones(1))
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) * 4 - 2
    # finish() centres and scales; undo both so that closed forms can be written in the builder's units.
    factor = 1 / _reach(kit, middle)
    rows = size.rows.expand(len(points), -1, -1)
    placed = (points - middle) * factor
    return rows, placed, factor


def _reach(kit: Kit, middle: torch.Tensor) -> torch.Tensor:
    built = kit.finish(torch.ones(1)).rows
    scaled = 1 / built[0, 15, 0]  # smallest scale of the first primitive after scaling
    return scaled * kit._scale[0, :, 0].amin()


def distances(*calls) -> tuple[torch.Tensor, torch.Tensor]:
    """First primitive's distance and the points, both in the builder's units."""
    rows, placed, factor = kit_with(*calls)
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) * 4 - 2
    return primitive_distances(rows, placed)[:, 0] / factor, points


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_sphere():
    found, p = distances(("ball", ((0.3, -0.2, 0.1), 0.4), {}))
    close(found, (p - torch.tensor([0.3, -0.2, 0.1])).norm(dim=-1) - 0.4)


def test_capsule():
    a, b = torch.tensor([0.1, -0.4, 0.2]), torch.tensor([0.5, 0.3, -0.3])
    found, p = distances(("rod", (a.tolist(), b.tolist(), 0.15), {}))
    along = ((p - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
    close(found, (p - a - along[:, None] * (b - a)).norm(dim=-1) - 0.15)


def test_rotated_box_outside_and_inside():
    angle = math.radians(30)
    found, p = distances(("box", ((0.1, 0.2, 0.0), (0.5, 0.3, 0.2)), {"rot": (0, 0, 30), "rounding": 0.0}))
    p = p - torch.tensor([0.1, 0.2, 0.0])
    local = torch.stack([math.cos(angle) * p[:, 0] + math.sin(angle) * p[:, 1], -math.sin(angle) * p[:, 0] + math.cos(angle) * p[:, 1], p[:, 2]], -1)
    q = local.abs() - torch.tensor([0.5, 0.3, 0.2])
    close(found, q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0))


def test_cylinder():
    found, p = distances(("cylinder", ((0, 0, 0), 0.4, 0.6), {"rounding": 0.0}))
    q = torch.stack([p[:, :2].norm(dim=-1) - 0.4, p[:, 2].abs() - 0.6], -1)
    # Inside, the revolved plane folds at the axis: distances to the side wall are exact.
    close(found, q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0))


def test_torus():
    found, p = distances(("ring", ((0, 0, 0), 0.5, 0.1), {}))
    close(found, torch.stack([p[:, :2].norm(dim=-1) - 0.5, p[:, 2]], -1).norm(dim=-1) - 0.1)


@pytest.mark.parametrize("arc", [40.0, 90.0, 130.0])
def test_arc_against_points_on_it(arc: float):
    found, p = distances(("ring", ((0, 0, 0), 0.5, 0.1), {"arc": arc}))
    angle = torch.deg2rad(torch.linspace(-arc, arc, 2001))
    curve = torch.stack([0.5 * angle.sin(), 0.5 * angle.cos(), 0 * angle], -1)  # centred on +y
    torch.testing.assert_close(found, torch.cdist(p, curve).amin(-1) - 0.1, atol=2e-3, rtol=0)


def test_frustum_zero_set_and_bound():
    found, p = distances(("cylinder", ((0, 0, 0), 0.5, 0.4), {"top": 0.2, "rounding": 1e-4}))
    radius = 0.35 - 0.3 * p[:, 2] / 0.8
    inside = (p[:, :2].norm(dim=-1) < radius) & (p[:, 2].abs() < 0.4)
    sure = found.abs() > 2e-3
    assert torch.equal((found < 0)[sure], inside[sure])


def test_ellipsoid_zero_set_and_first_order_distance():
    found, p = distances(("ball", ((0, 0, 0), (0.6, 0.3, 0.2)), {}))
    value = (p / torch.tensor([0.6, 0.3, 0.2])).norm(dim=-1) - 1
    assert torch.equal(found < 0, value < 0)
    surface = torch.nn.functional.normalize(p, dim=-1)
    surface = surface / (surface / torch.tensor([0.6, 0.3, 0.2])).norm(dim=-1, keepdim=True)
    normal = torch.nn.functional.normalize(surface / torch.tensor([0.6, 0.3, 0.2]).square(), dim=-1)
    rows, _, factor = kit_with(("ball", ((0, 0, 0), (0.6, 0.3, 0.2)), {}))
    near = primitive_distances(rows, (surface + 0.002 * normal) * factor)[:, 0] / factor
    torch.testing.assert_close(near, torch.full_like(near, 0.002), atol=2e-4, rtol=0)


def test_groups_cut_the_body_but_not_the_extras():
    kit = Kit(1, torch.Generator().manual_seed(0))
    kit.ball((0, 0, 0), 1.0)
    kit.ball((0, 0, 0), 0.8, group=CUT)
    kit.ball((0, 0, 0), 0.3, WHITE, group=EXTRA)
    rows = kit.finish(torch.ones(1)).rows.expand(3, -1, -1)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.9, 0.0, 0.0]])
    torch.testing.assert_close(scene_distance(rows, points), torch.tensor([-0.3, 0.2, -0.1]), atol=2e-2, rtol=0)
    assert nearest_primitive(rows, points).tolist() == [2, 2, 0]


def test_unused_primitives_are_far_away_and_too_many_are_refused():
    kit = Kit(1, torch.Generator().manual_seed(0))
    kit.ball((0, 0, 0), 1.0)
    rows = kit.finish(torch.ones(1)).rows
    assert (primitive_distances(rows, torch.zeros(1, 3))[:, 1:] > 10).all() and rows.shape[1] > GROUP
    for _ in range(MAX_PRIMITIVES - 1):
        kit.ball((0, 0, 0), 1.0)
    with pytest.raises(ValueError, match="more than 20 primitives"):
        kit.ball((0, 0, 0), 1.0)
