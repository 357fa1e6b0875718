"""Colored points from files: point clouds, and meshes by sampling their surface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..gaussians.model import sh0_to_rgb
from ..gaussians.ply import GaussianFileError, read_ply_vertices
from .points import ColoredPoints
from .sphere import choose_colors

MAX_POINTS = 5_000_000
"""More points than this in one file are refused: they would not fit a training run anywhere."""

_COLOR_NAMES = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


def points_from_file(
    path: str | os.PathLike[str],
    *,
    max_points: int = MAX_POINTS,
    color: str | tuple[float, float, float] | list[float] = "gray",
    generator: torch.Generator | None = None,
) -> ColoredPoints:
    """Read every point of a point cloud (or the vertices of a mesh), in the file's order and units.

    PLY files of any kind are read, splats too (their centers and constant colors), and whatever trimesh reads (.xyz, .obj,
    .glb, .off, ...).

    Args:
        max_points: more are refused.
        color: for a file without colors, as `choose_colors` takes it.
        generator: CPU generator, for "gray" and "random" colors of a file without any; none: seed 0.

    Raises:
        GaussianFileError: missing, unreadable, empty, too large, or rows that are not finite; names the rows.
    """
    source = _existing(path)
    if source.suffix.lower() == ".ply":
        points, colors = _from_ply(source)
    else:
        points, colors = _from_trimesh(source)
    _check(points, source, max_points)
    if colors is None:
        colors = choose_colors(len(points), color, generator or torch.Generator().manual_seed(0))
    else:
        _check_finite(colors, source, "colors")
    return ColoredPoints(points.contiguous(), colors.clamp(0.0, 1.0).contiguous())


def load_meshes(path: str | os.PathLike[str]) -> list[Any]:
    """The triangle meshes of a file as trimesh objects, moved to their place in the scene.

    Raises:
        GaussianFileError: missing, unreadable, no triangles, or vertices that are not finite; names the rows.
    """
    source = _existing(path)
    meshes = [m for m in _load_geometries(source) if len(getattr(m, "faces", ())) > 0]
    if not meshes:
        raise GaussianFileError(f"{source}: contains no triangles. A point cloud is read by init type 'points'.")
    for mesh in meshes:
        _check_finite(torch.from_numpy(np.array(mesh.vertices, dtype=np.float64)), source, "vertices")
    return meshes


# ---------------------------------------------------------------------- inside


def _existing(path: str | os.PathLike[str]) -> Path:
    source = Path(path)
    if not source.is_file():
        raise GaussianFileError(f"{source}: no such file (looked in {Path.cwd()})")
    return source


def _from_ply(source: Path) -> tuple[Tensor, Tensor | None]:
    rows = read_ply_vertices(source)
    names = rows.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise GaussianFileError(f"{source}: its vertices have no x, y, z (they have {', '.join(names) or 'nothing'})")
    points = _stack(rows, ("x", "y", "z"))
    if {"f_dc_0", "f_dc_1", "f_dc_2"} <= set(names):
        return points, sh0_to_rgb(_stack(rows, ("f_dc_0", "f_dc_1", "f_dc_2")))
    for triple in _COLOR_NAMES:
        if set(triple) <= set(names):
            kind = rows.dtype[triple[0]]
            largest = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
            return points, _stack(rows, triple) / largest
    return points, None


def _stack(rows: np.ndarray, names: tuple[str, ...]) -> Tensor:
    return torch.from_numpy(np.stack([rows[n].astype(np.float32) for n in names], axis=1))


def _from_trimesh(source: Path) -> tuple[Tensor, Tensor | None]:
    clouds = [g for g in _load_geometries(source) if len(getattr(g, "vertices", ())) > 0]
    if not clouds:
        return torch.zeros(0, 3), None
    points = torch.from_numpy(np.concatenate([np.asarray(c.vertices, np.float32) for c in clouds]))
    colors = [_vertex_colors(c) for c in clouds]
    if any(c is None for c in colors):
        return points, None
    return points, torch.from_numpy(np.concatenate(colors).astype(np.float32) / 255.0)


def _vertex_colors(geometry: Any) -> np.ndarray | None:
    """[V, 3] 0..255, or None where the file gave none."""
    visual = getattr(geometry, "visual", None)
    if getattr(visual, "kind", None) is None:
        return None
    if visual.kind == "texture":
        visual = visual.to_color()
    colors = np.asarray(visual.vertex_colors)
    return colors[:, :3] if colors.shape == (len(geometry.vertices), 4) else None


def _load_geometries(source: Path) -> list[Any]:
    try:
        import trimesh
    except ImportError as problem:
        raise GaussianFileError(f"{source}: reading it needs trimesh; install it with `pip install trimesh`") from problem
    try:
        # process=False: merging vertices would lose seams of textures and rows of clouds.
        loaded = trimesh.load(str(source), process=False)
    except Exception as problem:  # trimesh's readers raise nearly anything on a damaged file
        raise GaussianFileError(f"{source}: cannot be read ({type(problem).__name__}: {problem})") from problem
    return list(loaded.dump()) if isinstance(loaded, trimesh.Scene) else [loaded]


def _check(points: Tensor, source: Path, max_points: int) -> None:
    if len(points) == 0:
        raise GaussianFileError(f"{source}: contains no points")
    if len(points) > max_points:
        raise GaussianFileError(
            f"{source}: contains {len(points)} points, more than the limit of {max_points}; "
            f"thin it out first, or raise densification.cap_max if that is the limit"
        )
    _check_finite(points, source, "positions")


def _check_finite(values: Tensor, source: Path, what: str) -> None:
    bad = (~values.isfinite().all(-1)).nonzero()[:, 0].tolist()
    if bad:
        shown = ", ".join(str(i) for i in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise GaussianFileError(
            f"{source}: {len(bad)} of {len(values)} rows have {what} that are not finite (rows {shown}, from 0)"
        )
