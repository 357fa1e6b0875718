"""Texture coordinates for a triangle mesh: charts cut and packed by the package xatlas."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from threestudio.errors import ConfigError, UserError, suggest

_UNPLACED = np.iinfo(np.uint32).max
_LENGTH_POWERS = {"max_boundary_length": 1, "max_chart_area": 2, "texels_per_unit": -1}
"""Options measured in the mesh's unit of length, and their power of it."""
CHART_AREA = 200.0
"""Largest chart in squares of the mean edge, if the options name none. Large charts cost xatlas ten times the time on
isosurfaces, and most of them fail and fall to pieces."""


class MissingUnwrapperError(UserError, ImportError):
    """Texture coordinates are asked for, but xatlas is not installed."""


def unwrap(
    v_pos: np.ndarray,
    t_pos_idx: np.ndarray,
    chart_options: Mapping[str, Any] | None = None,
    pack_options: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates [Nt, 2] in [0, 1] and the triangles as indices [Nf, 3] into them, in the faces' order.

    Args:
        v_pos: [Nv, 3].  t_pos_idx: [Nf, 3].
        chart_options, pack_options: attributes of xatlas.ChartOptions and xatlas.PackOptions; lengths and areas in the
            mesh's units. Without max_chart_area, charts are at most CHART_AREA squares of the mean edge.

    Raises:
        MissingUnwrapperError: xatlas is not installed.
        ConfigError: an option is unknown or has the wrong type, or the charts need more than one picture.
    """
    xatlas = _xatlas()
    # xatlas leaves out faces below a fixed area, so it gets a mesh whose edges are about one long.
    corners = v_pos[t_pos_idx].astype(np.float64)
    edge = float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).mean()) or 1.0
    chart_options = {"max_chart_area": CHART_AREA * edge**2, **(chart_options or {})}
    chart = _filled(xatlas.ChartOptions(), chart_options, "xatlas_chart_options", edge)
    pack = _filled(xatlas.PackOptions(), pack_options, "xatlas_pack_options", edge)
    atlas = xatlas.Atlas()
    atlas.add_mesh((v_pos / edge).astype(np.float32), t_pos_idx.astype(np.uint32))
    atlas.generate(chart, pack)
    if atlas.atlas_count > 1:
        raise ConfigError(
            f"The charts fill {atlas.atlas_count} textures, only one can be written. Raise resolution or lower "
            "texels_per_unit in xatlas_pack_options, or leave texels_per_unit out."
        )
    position, faces, uv = atlas.get_mesh(0)
    placed = atlas.get_mesh_vertex_assignment(0)[1] != _UNPLACED
    faces = _with_unplaced_faces(faces.astype(np.int64), t_pos_idx, position, placed)
    return np.nan_to_num(uv).clip(0.0, 1.0).astype(np.float32), faces


def _xatlas() -> ModuleType:
    try:
        import xatlas
    except ImportError as error:
        raise MissingUnwrapperError(
            "Texture coordinates need the package xatlas, which is not installed: pip install xatlas"
        ) from error
    return xatlas


def _filled(target: Any, options: Mapping[str, Any] | None, name: str, edge: float) -> Any:
    """`target` with `options` as its attributes, lengths in units of `edge`."""
    for key, value in (options or {}).items():
        known = [attribute for attribute in dir(target) if not attribute.startswith("_")]
        if key not in known:
            raise ConfigError(f"{name}.{key} is unknown to xatlas. {suggest(key, known)}")
        try:
            setattr(target, key, value / edge ** _LENGTH_POWERS[key] if key in _LENGTH_POWERS else value)
        except TypeError as error:
            kind = type(getattr(target, key)).__name__
            raise ConfigError(f"{name}.{key} is {value!r}; xatlas expects {kind} there.") from error
    return target


def _with_unplaced_faces(
    faces: np.ndarray, t_pos_idx: np.ndarray, position: np.ndarray, placed: np.ndarray
) -> np.ndarray:
    """Give faces without a chart (they have next to no area) the texture coordinates of one of their corners.

    Args:
        faces: [Nf, 3] into the texture vertices.  t_pos_idx: [Nf, 3] into the positions.
        position: [Nt] position of each texture vertex.  placed: [Nt] whether it lies in a chart.
    """
    lost = ~placed[faces].all(axis=1)
    if not lost.any():
        return faces
    home = np.full(int(t_pos_idx.max()) + 1, -1, dtype=np.int64)
    home[position[placed]] = np.flatnonzero(placed)
    neighbor = home[t_pos_idx[lost]].max(axis=1)
    faces[lost] = np.where(neighbor >= 0, neighbor, faces[lost, 0])[:, None]
    return faces
