"""From a field of surface properties to the textures of an unwrapped mesh."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from threestudio.models.mesh import Mesh
from threestudio.utils.ops import chunk_batch
from threestudio.utils.texels import surface_points

POINTS_AT_ONCE = 1 << 18
"""Surface points a geometry and a material are asked about in one call; bounds the memory of their networks."""

Properties = Callable[[Tensor], dict[str, Tensor]]
"""World points [N, 3] -> properties [N, C] by name."""


def bake_textures(mesh: Mesh, properties: Properties, size: int) -> dict[str, np.ndarray]:
    """Textures [size, size, C] float32 by name, on the CPU.

    A texel in or near a chart takes the properties of the surface point under it. All others repeat the nearest of
    these, so that neither smaller mipmap levels nor JPEG's blocks carry foreign colors into a chart.
    """
    # On the CPU, which has every operation this takes and makes the same bytes wherever the mesh comes from.
    points = surface_points(mesh.v_tex.cpu(), mesh.t_tex_idx.cpu(), size, size)
    positions = points.interpolate(mesh.v_pos.cpu(), mesh.t_pos_idx.cpu()).to(mesh.v_pos)
    values = chunk_batch(properties, POINTS_AT_ONCE, positions)
    source = _nearest(points.covered)
    return {name: value.detach().float().cpu().numpy()[source] for name, value in values.items()}


def vertex_properties(mesh: Mesh, properties: Properties) -> dict[str, Tensor]:
    """Properties [Nv, C] by name, at the vertices."""
    return chunk_batch(properties, POINTS_AT_ONCE, mesh.v_pos)


def _nearest(covered: Tensor) -> np.ndarray:
    """For every texel [H, W] the number of the nearest covered one, counting covered texels in row order."""
    from scipy.ndimage import distance_transform_edt

    mask = covered.cpu().numpy()
    rows, columns = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    number = np.cumsum(mask.reshape(-1)).reshape(mask.shape) - 1
    return number[rows, columns]
