"""Meshes and points as the bytes of files that other programs read."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..mesh import ColoredMesh
from ..points import ColoredPoints, srgb_to_linear

FORMATS = {".ply": "z", ".glb": "y", ".obj": "y"}
"""Suffix -> the axis that points up in such files as a rule."""


def mesh_bytes(mesh: ColoredMesh, suffix: str, up: str) -> bytes:
    """A mesh as a .ply, .glb or .obj file with vertex colors: in linear light in .glb, as glTF wants them, else sRGB.

    `up`: "y" or "z". A file with y up is read with `init.up: y`, which turns it back exactly.
    """
    import trimesh

    colors = srgb_to_linear(mesh.colors) if suffix == ".glb" else mesh.colors
    made = trimesh.Trimesh(_turned(mesh.vertices, up), mesh.faces.numpy(), vertex_colors=_bytes(colors), process=False)
    data = made.export(file_type=suffix[1:])
    return data.encode() if isinstance(data, str) else data


def point_bytes(cloud: ColoredPoints, up: str) -> bytes:
    """Points as a .ply file with sRGB colors; `up` as for `mesh_bytes`."""
    import trimesh

    return trimesh.PointCloud(_turned(cloud.points, up), colors=_bytes(cloud.colors)).export(file_type="ply")


def _turned(points: Tensor, up: str) -> np.ndarray:
    """The inverse of what `reorient` does with points of that up axis."""
    x, y, z = points.numpy().T
    return np.stack([x, z, -y] if up == "y" else [x, y, z], axis=1)


def _bytes(colors: Tensor) -> np.ndarray:
    """[N, 4] RGBA from 0 to 255."""
    rgb = (255 * colors).round().byte().numpy()
    return np.pad(rgb, ((0, 0), (0, 1)), constant_values=255)
