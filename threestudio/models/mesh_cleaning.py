"""Repairs of an extracted surface before it is written to a file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from threestudio.errors import UserError
from threestudio.models.isosurface import EmptySurfaceError
from threestudio.models.mesh import Mesh

WELD_FRACTION = 1e-5
"""Vertices closer than about this fraction of the mesh's longest side become one."""


def clean_mesh(mesh: Mesh) -> Mesh:
    """A mesh with the same surface and no waste: a new Mesh, without gradients, extras kept.

    Coinciding vertices are joined, faces that collapse by this or repeat another are dropped, two that face each other
    back to back cancel, all faces of a connected part run the same way round (that of its majority), those of a closed
    mesh counterclockwise seen from outside, and vertices nobody uses go. A closed mesh stays closed.

    Raises:
        EmptySurfaceError: nothing is left.
        UserError: vertices are not finite.
    """
    device = mesh.v_pos.device
    # On the CPU, which has every operation this takes; scipy needs it there anyway.
    v_pos, faces = mesh.v_pos.detach().cpu(), mesh.t_pos_idx.cpu()
    bad = int((~torch.isfinite(v_pos)).any(-1).sum())
    if bad:
        raise UserError(
            f"{bad} of the mesh's {len(v_pos)} vertices are not finite numbers, so it cannot be written. The "
            "geometry's parameters probably diverged in training; export an earlier checkpoint."
        )
    if len(faces):
        faces = _weld(v_pos, faces)
    if not len(faces):
        raise EmptySurfaceError("The geometry's surface has no face with an area. Set another isosurface_threshold.")
    faces = _outward(v_pos, _same_winding(faces))
    used, faces = faces.unique(return_inverse=True)
    cleaned = Mesh(v_pos[used].to(device), faces.to(device), **mesh.extras)
    if mesh.v_rgb is not None:
        cleaned.set_vertex_color(mesh.v_rgb.detach()[used.to(device)])
    return cleaned


def _weld(v_pos: Tensor, faces: Tensor) -> Tensor:
    """Faces over the first of each set of coinciding vertices, without those that collapse or repeat.

    Where parts of a surface only touch, joining would make edges of four faces; such vertices stay apart.
    """
    numbers = torch.arange(len(v_pos))
    target = numbers
    step = float((v_pos.amax(0) - v_pos.amin(0)).max()) * WELD_FRACTION
    if step > 0:
        _, cell = ((v_pos - v_pos.amin(0)) / step).round().long().unique(dim=0, return_inverse=True)
        first = numbers.new_full((int(cell.max()) + 1,), len(v_pos)).scatter_reduce(0, cell, numbers, "amin")
        target = first[cell]
    tolerated = len(_uneven_edges(faces))  # an open mesh has such edges, a heap of single triangles nothing else
    while True:
        joined = _drop_repeated(_without_collapsed(target[faces]))
        uneven = _uneven_edges(joined)
        apart = torch.isin(target, uneven) & (target != numbers)
        if len(uneven) <= tolerated or not apart.any():
            return joined
        target = torch.where(apart, numbers, target)


def _without_collapsed(faces: Tensor) -> Tensor:
    a, b, c = faces.unbind(1)
    return faces[(a != b) & (b != c) & (c != a)]


def _uneven_edges(faces: Tensor) -> Tensor:
    """Vertex pairs [E, 2] of the edges that do not belong to exactly two faces."""
    edges = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).sort(dim=-1).values.reshape(-1, 2)
    stride = int(faces.max()) + 1 if len(faces) else 1
    keys, count = (edges[:, 0] * stride + edges[:, 1]).unique(return_counts=True)
    keys = keys[count != 2]
    return torch.stack([keys // stride, keys % stride], dim=-1)


def _drop_repeated(faces: Tensor) -> Tensor:
    """One face per set of three vertices, wound as most of its copies are; none if as many run each way round."""
    _, kind = faces.sort(dim=1).values.unique(dim=0, return_inverse=True)
    if not len(faces) or int(kind.max()) + 1 == len(faces):
        return faces
    a, b, c = faces.unbind(1)
    odd = (a > b).long() + (b > c).long() + (a > c).long()
    sign = 1 - 2 * (odd % 2)
    balance = faces.new_zeros(int(kind.max()) + 1).index_add(0, kind, sign)
    wanted = (sign * balance[kind] > 0).nonzero()[:, 0]
    first = faces.new_full((len(balance),), len(faces)).scatter_reduce(0, kind[wanted], wanted, "amin")
    return faces[first[first < len(faces)]]


def _same_winding(faces: Tensor) -> Tensor:
    """Faces turned over where their part's majority runs the other way round.

    Each face stands for two nodes of a graph, itself and itself turned over; nodes that go together are linked, so the
    two possible windings of a part are two connected components. A part like a Moebius strip has only one and stays.
    """
    f = faces.numpy()
    start, end = f.reshape(-1), np.roll(f, -1, axis=1).reshape(-1)
    low, high = np.minimum(start, end), np.maximum(start, end)
    order = np.lexsort((high, low))
    _, first, count = np.unique((low * (f.max() + 1) + high)[order], return_index=True, return_counts=True)
    one, two = order[first[count == 2]], order[first[count == 2] + 1]  # the two half edges of each inner edge
    clash = start[one] == start[two]
    if not clash.any():
        return faces
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(f)
    i, j = one // 3, two // 3
    rows = np.concatenate([i, i + n])
    columns = np.concatenate([np.where(clash, j + n, j), np.where(clash, j, j + n)])
    _, labels = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(2 * n, 2 * n)), False)
    kept = np.bincount(labels[:n], minlength=int(labels.max()) + 1)  # faces a component leaves as they are
    turn = kept[labels[n:]] > kept[labels[:n]]
    tie = (kept[labels[n:]] == kept[labels[:n]]) & (labels[n:] < labels[:n])
    turned = torch.as_tensor(turn | tie)
    return torch.where(turned[:, None], faces.flip(1), faces)


def _outward(v_pos: Tensor, faces: Tensor) -> Tensor:
    """All faces turned over if the mesh is closed and encloses a negative volume."""
    edges = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).sort(dim=-1).values.reshape(-1, 2)
    _, count = (edges[:, 0] * len(v_pos) + edges[:, 1]).unique(return_counts=True)
    a, b, c = (v_pos - v_pos.mean(0))[faces].double().unbind(1)
    inverted = bool((count % 2 == 0).all()) and float((a * torch.cross(b, c, dim=-1)).sum()) < 0
    return faces.flip(1) if inverted else faces
