"""The compiled loops of `TriangleTree`: each over points, which threads share."""

from __future__ import annotations

import math

import numpy as np

from ..rasterization.numba_runtime import inlined, kernel, parallel_for

_STACK = 128  # a tree of depth d needs d + 2 places
_FAR = 4.0
"""A node counts as far from this many of its radii on (the beta of Barill et al. 2018, who take 2; the time goes elsewhere)."""


def find_nearest(
    points: np.ndarray, corners: np.ndarray, faces: np.ndarray, boxes: np.ndarray,
    squares: np.ndarray, nearest: np.ndarray, weights: np.ndarray,
) -> None:  # fmt: skip
    """Fill squared distances [N], faces [N] and barycentric coordinates [N, 3]."""
    parallel_for(_find_nearest, len(points), points, corners, faces, boxes, squares, nearest, weights, grain=256)


def sum_winding(
    points: np.ndarray, corners: np.ndarray, faces: np.ndarray, dipoles: np.ndarray, numbers: np.ndarray
) -> None:
    """Fill winding numbers [N]."""
    parallel_for(_sum_winding, len(points), points, corners, faces, dipoles, numbers, grain=256)


@inlined
def _box_square(boxes, node, x, y, z):
    """Squared distance of a point to a box; infinity if it is empty."""
    dx = max(boxes[node, 0, 0] - x, 0.0, x - boxes[node, 1, 0])
    dy = max(boxes[node, 0, 1] - y, 0.0, y - boxes[node, 1, 1])
    dz = max(boxes[node, 0, 2] - z, 0.0, z - boxes[node, 1, 2])
    return dx * dx + dy * dy + dz * dz


@inlined
def _nearest_weights(corners, i, x, y, z):
    """Barycentric coordinates of the point of triangle i nearest to x, y, z (Ericson, Real-Time Collision Detection, 5.1.5)."""
    abx, aby, abz = corners[i, 1, 0] - corners[i, 0, 0], corners[i, 1, 1] - corners[i, 0, 1], corners[i, 1, 2] - corners[i, 0, 2]
    acx, acy, acz = corners[i, 2, 0] - corners[i, 0, 0], corners[i, 2, 1] - corners[i, 0, 1], corners[i, 2, 2] - corners[i, 0, 2]
    apx, apy, apz = x - corners[i, 0, 0], y - corners[i, 0, 1], z - corners[i, 0, 2]
    d1, d2 = abx * apx + aby * apy + abz * apz, acx * apx + acy * apy + acz * apz
    if d1 <= 0.0 and d2 <= 0.0:
        return 1.0, 0.0, 0.0
    bpx, bpy, bpz = apx - abx, apy - aby, apz - abz
    d3, d4 = abx * bpx + aby * bpy + abz * bpz, acx * bpx + acy * bpy + acz * bpz
    if d3 >= 0.0 and d4 <= d3:
        return 0.0, 1.0, 0.0
    cpx, cpy, cpz = apx - acx, apy - acy, apz - acz
    d5, d6 = abx * cpx + aby * cpy + abz * cpz, acx * cpx + acy * cpy + acz * cpz
    if d6 >= 0.0 and d5 <= d6:
        return 0.0, 0.0, 1.0
    vc = d1 * d4 - d3 * d2
    if vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0:
        share = d1 / (d1 - d3)
        return 1.0 - share, share, 0.0
    vb = d5 * d2 - d1 * d6
    if vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0:
        share = d2 / (d2 - d6)
        return 1.0 - share, 0.0, share
    va = d3 * d6 - d5 * d4
    if va <= 0.0 and d4 - d3 >= 0.0 and d5 - d6 >= 0.0:
        share = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        return 0.0, 1.0 - share, share
    total = va + vb + vc
    return va / total, vb / total, vc / total


@kernel
def _find_nearest(start, stop, points, corners, faces, boxes, squares, nearest, weights):
    first_leaf = boxes.shape[0] // 2
    leaf = corners.shape[0] // (first_leaf + 1)
    nodes, bounds = np.empty(_STACK, np.int64), np.empty(_STACK)
    for n in range(start, stop):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        best = np.inf
        nodes[0], bounds[0], top = 0, 0.0, 1
        while top > 0:
            top -= 1
            node = nodes[top]
            if bounds[top] >= best:
                continue
            if node >= first_leaf:
                for i in range((node - first_leaf) * leaf, (node - first_leaf + 1) * leaf):
                    if faces[i] < 0:
                        continue
                    u, v, w = _nearest_weights(corners, i, x, y, z)
                    dx = u * corners[i, 0, 0] + v * corners[i, 1, 0] + w * corners[i, 2, 0] - x
                    dy = u * corners[i, 0, 1] + v * corners[i, 1, 1] + w * corners[i, 2, 1] - y
                    dz = u * corners[i, 0, 2] + v * corners[i, 1, 2] + w * corners[i, 2, 2] - z
                    square = dx * dx + dy * dy + dz * dz
                    if square < best:
                        best = square
                        nearest[n] = faces[i]
                        weights[n, 0], weights[n, 1], weights[n, 2] = u, v, w
                continue
            near, far = 2 * node + 1, 2 * node + 2
            to_near, to_far = _box_square(boxes, near, x, y, z), _box_square(boxes, far, x, y, z)
            if to_far < to_near:
                near, far, to_near, to_far = far, near, to_far, to_near
            nodes[top], bounds[top] = far, to_far
            nodes[top + 1], bounds[top + 1] = near, to_near
            top += 2
        squares[n] = best


@inlined
def _solid_angle(corners, i, x, y, z):
    """Signed, of triangle i seen from a point (van Oosterom and Strackee 1983): positive from behind its front."""
    ax, ay, az = corners[i, 0, 0] - x, corners[i, 0, 1] - y, corners[i, 0, 2] - z
    bx, by, bz = corners[i, 1, 0] - x, corners[i, 1, 1] - y, corners[i, 1, 2] - z
    cx, cy, cz = corners[i, 2, 0] - x, corners[i, 2, 1] - y, corners[i, 2, 2] - z
    a = math.sqrt(ax * ax + ay * ay + az * az)
    b = math.sqrt(bx * bx + by * by + bz * bz)
    c = math.sqrt(cx * cx + cy * cy + cz * cz)
    volume = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
    scale = a * b * c + (ax * bx + ay * by + az * bz) * c + (bx * cx + by * cy + bz * cz) * a + (cx * ax + cy * ay + cz * az) * b
    return 2.0 * math.atan2(volume, scale)


@kernel
def _sum_winding(start, stop, points, corners, faces, dipoles, numbers):
    first_leaf = dipoles.shape[0] // 2
    leaf = corners.shape[0] // (first_leaf + 1)
    nodes = np.empty(_STACK, np.int64)
    for n in range(start, stop):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        total = 0.0
        nodes[0], top = 0, 1
        while top > 0:
            top -= 1
            node = nodes[top]
            dx, dy, dz = dipoles[node, 0] - x, dipoles[node, 1] - y, dipoles[node, 2] - z
            square = dx * dx + dy * dy + dz * dz
            reach = _FAR * dipoles[node, 3]
            if square > reach * reach:
                flux = dx * dipoles[node, 4] + dy * dipoles[node, 5] + dz * dipoles[node, 6]
                total += flux / (square * math.sqrt(square))
            elif node >= first_leaf:
                for i in range((node - first_leaf) * leaf, (node - first_leaf + 1) * leaf):
                    if faces[i] >= 0:
                        total += _solid_angle(corners, i, x, y, z)
            else:
                nodes[top], nodes[top + 1] = 2 * node + 1, 2 * node + 2
                top += 2
        numbers[n] = total / (4.0 * math.pi)
