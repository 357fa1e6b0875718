"""A tree of boxes over triangles, which finds the nearest triangle and the winding number of many points.

Own code because no library fits: trimesh's queries need rtree and take milliseconds a point, pysdf has no wheels and counts
crossings (wrong for meshes with holes), and a current libigl breaks the import of the original threestudio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .triangle_kernels import find_nearest, sum_winding

LEAF_SIZE = 8
"""Most triangles in a leaf."""


@dataclass(frozen=True)
class NearestTriangles:
    """What `TriangleTree.nearest` found for N points."""

    distances: Tensor
    """[N] float64, not negative."""
    faces: Tensor
    """[N] int64."""
    weights: Tensor
    """[N, 3] float64 barycentric coordinates of the nearest point in its triangle."""


class TriangleTree:
    """F triangles, halved along the longest side of each box until few are left."""

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        """Vertices [V, 3], any unit; faces [F, 3], F >= 1. Triangles without area are left out where others remain."""
        corners = vertices.detach().cpu().double().numpy()[faces.detach().cpu().numpy()]  # [F, 3, 3]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2  # as long as the area
        kept = np.flatnonzero((normals != 0).any(1))
        if len(kept) == 0:
            raise ValueError("the triangles have no area")
        depth = max(0, int(np.ceil(np.log2(len(kept) / LEAF_SIZE))))
        order = _order(corners[kept].mean(1), depth)
        self._faces = np.where(order >= 0, kept[order], -1)
        self._corners = np.ascontiguousarray(corners[self._faces])  # what pads hold is never read
        self._boxes = _boxes(self._corners, self._faces >= 0, depth)
        self._dipoles = _dipoles(self._corners, normals[self._faces] * (self._faces >= 0)[:, None], self._boxes, depth)

    def nearest(self, points: Tensor) -> NearestTriangles:
        """The triangle nearest to each of the points [N, 3] on the CPU, and where on it."""
        at = np.ascontiguousarray(points.double().numpy())
        squares, weights = np.empty(len(at)), np.empty((len(at), 3))
        faces = np.empty(len(at), np.int64)
        find_nearest(at, self._corners, self._faces, self._boxes, squares, faces, weights)
        return NearestTriangles(torch.from_numpy(np.sqrt(squares)), torch.from_numpy(faces), torch.from_numpy(weights))

    def winding_numbers(self, points: Tensor) -> Tensor:
        """[N] float64: how often the surface winds round each point, 1 inside of a closed surface and 0 outside.

        A surface with holes gives fractions (Jacobson et al. 2013). Far parts are taken as dipoles (Barill et al. 2018,
        "Fast Winding Numbers for Soups and Clouds", first order), which errs by at most about a hundredth.
        """
        at = np.ascontiguousarray(points.double().numpy())
        numbers = np.empty(len(at))
        sum_winding(at, self._corners, self._faces, self._dipoles, numbers)
        return torch.from_numpy(numbers)


# ---------------------------------------------------------------------- inside: nodes as a heap, children 2 i + 1 and 2 i + 2


def _order(centers: np.ndarray, depth: int) -> np.ndarray:
    """[LEAF_SIZE * 2^depth] the triangles in the order of the leaves, -1 where a leaf is not full."""
    total = LEAF_SIZE << depth
    # Pads repeat the last triangle, so that they stretch no box.
    places = np.concatenate([centers, np.repeat(centers[-1:], total - len(centers), axis=0)])
    order = np.arange(total)
    for level in range(depth):
        groups = order.reshape(1 << level, -1)
        inside = places[groups]  # [nodes, triangles, 3]
        axis = (inside.max(1) - inside.min(1)).argmax(1)
        along = np.take_along_axis(inside, axis[:, None, None], axis=2)[..., 0]
        order = np.take_along_axis(groups, along.argsort(axis=1, kind="stable"), axis=1).reshape(-1)
    return np.where(order < len(centers), order, -1)


def _boxes(corners: np.ndarray, real: np.ndarray, depth: int) -> np.ndarray:
    """[nodes, 2, 3] lowest and highest corner of each node; an empty one's is inside out at infinity."""
    low = np.where(real[:, None], corners.min(1), np.inf).reshape(-1, LEAF_SIZE, 3).min(1)
    high = np.where(real[:, None], corners.max(1), -np.inf).reshape(-1, LEAF_SIZE, 3).max(1)
    levels = [np.stack([low, high], axis=1)]
    for _ in range(depth):
        pairs = levels[0].reshape(-1, 2, 2, 3)
        levels.insert(0, np.stack([pairs[:, :, 0].min(1), pairs[:, :, 1].max(1)], axis=1))
    return np.ascontiguousarray(np.concatenate(levels))


def _dipoles(corners: np.ndarray, normals: np.ndarray, boxes: np.ndarray, depth: int) -> np.ndarray:
    """[nodes, 7] center by area, radius round it, and sum of the normals of each node."""
    areas = np.linalg.norm(normals, axis=1, keepdims=True)
    # What adds up over the triangles of a node: area, area times center, normal.
    sums = np.concatenate([areas, areas * corners.mean(1), normals], axis=1)
    levels = [sums.reshape(-1, LEAF_SIZE, 7).sum(1)]
    for _ in range(depth):
        levels.insert(0, levels[0].reshape(-1, 2, 7).sum(1))
    sums = np.concatenate(levels)
    empty = sums[:, :1] == 0
    centers = np.where(empty, 0.0, sums[:, 1:4] / np.where(empty, 1.0, sums[:, :1]))
    reach = np.where(empty, 0.0, np.maximum(boxes[:, 1] - centers, centers - boxes[:, 0]))
    return np.ascontiguousarray(np.concatenate([centers, np.linalg.norm(reach, axis=1, keepdims=True), sums[:, 4:]], axis=1))
