"""Signed distance of packed scenes, vectorised over (point, primitive)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import primitives as layout

_EMPTY = 10.0  # distance reported where a group has no primitive; the world is about 1 across


def primitive_distances(rows: Tensor, points: Tensor) -> Tensor:
    """Distance of each point to each primitive of its scene.

    Args:
        rows: [N, ROW, P] packed primitives (see primitives.py), one scene per point.
        points: [N, 3] object coordinates.

    Returns:
        [N, P], negative inside. Exact for boxes, capsules, cylinders and tori; a first-order estimate for ellipsoids
        (which IQ's "ellipsoid bound" also is) and a lower bound for tapered shapes and partial arcs with a flat profile.
    """
    x, y, z = (points[:, i, None] for i in range(3))
    m = [rows[:, i] for i in range(layout.ROW)]
    u = m[0] * x + m[1] * y + m[2] * z + m[layout.OFFSET]
    v = m[3] * x + m[4] * y + m[5] * z + m[layout.OFFSET + 1]
    w = m[6] * x + m[7] * y + m[8] * z + m[layout.OFFSET + 2]
    # Revolved primitives live in the half plane (distance from the ring, z); beyond a partial arc the nearest ring
    # point is the arc's end.
    revolved = m[layout.REVOLVED] > 0
    ring, sin, cos = m[layout.RING], m[layout.ARC_SIN], m[layout.ARC_COS]
    across = torch.sqrt(u * u + v * v)
    # Inside the arc: angle from +y <= arc, that is cos(angle) >= cos(arc).
    end = torch.sqrt((u.abs() - ring * sin).square() + (v - ring * cos).square())
    around = torch.where(v >= cos * across, across - ring, end)
    taper = m[layout.TAPER]
    half_z = m[layout.HALF + 2]
    widen = taper * torch.minimum(torch.maximum(w, -half_z), half_z)
    qx = torch.where(revolved, around, u).abs() - m[layout.HALF] - widen
    qy = torch.where(revolved, torch.zeros_like(v), v.abs() - m[layout.HALF + 1] - widen)
    qz = w.abs() - half_z
    outside = torch.sqrt(qx.clamp_min(0).square() + qy.clamp_min(0).square() + qz.clamp_min(0).square())
    # The revolved plane has no y: its zero must not count as "on the surface" inside.
    inside = torch.maximum(qx, torch.where(revolved, qz, torch.maximum(qy, qz))).clamp_max(0)
    distance = (outside + inside) / torch.sqrt(1 + taper * taper) - m[layout.ROUND]
    # Back from scaled units: a ball by the gradient's length (exact to first order), anything else by the smallest scale.
    sx, sy, sz = (m[layout.INVERSE_SCALE + i] for i in range(3))
    length = torch.sqrt(u * u + v * v + w * w) + 1e-6
    steep = torch.sqrt((u * sx).square() + (v * sy).square() + (w * sz).square()) + 1e-6 / m[layout.SMALLEST_SCALE]
    return distance * torch.where(m[layout.IS_BALL] > 0, length / steep, m[layout.SMALLEST_SCALE])


def _split(rows: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """The distances of body and cuts, others pushed away, and of the extras: the scene is max(body, -cut) u extras."""
    group = rows[:, layout.GROUP]
    body = torch.where(group == layout.BODY, distances, _EMPTY)
    cut = torch.where(group == layout.CUT, distances, _EMPTY).amin(-1, keepdim=True)
    solid = torch.maximum(body, -cut)
    return solid, torch.where(group == layout.EXTRA, distances, _EMPTY)


def scene_distance(rows: Tensor, points: Tensor) -> Tensor:
    """Distance to the whole scene, [N]: (bodies minus cuts) united with extras."""
    distances = primitive_distances(rows, points)
    group = rows[:, layout.GROUP]
    body = torch.where(group == layout.BODY, distances, _EMPTY).amin(-1)
    cut = torch.where(group == layout.CUT, distances, _EMPTY).amin(-1)
    extra = torch.where(group == layout.EXTRA, distances, _EMPTY).amin(-1)
    return torch.minimum(torch.maximum(body, -cut), extra)


def nearest_primitive(rows: Tensor, points: Tensor) -> Tensor:
    """Index [N] of the primitive whose surface is at the point; a cut surface belongs to the body it was cut from."""
    solid, extra = _split(rows, primitive_distances(rows, points))
    return torch.minimum(solid, extra).argmin(-1)
