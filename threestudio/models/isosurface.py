"""From values on a grid to a triangle mesh: marching tetrahedra in PyTorch, marching cubes through an optional
package."""

from __future__ import annotations

from itertools import combinations, permutations

import torch
from torch import Tensor, nn

from threestudio.errors import UserError
from threestudio.models.mesh import Mesh
from threestudio.utils.ops import scale_tensor

TET_EDGES = tuple(combinations(range(4), 2))
"""The six edges of a tetrahedron by corner numbers."""


class MissingMarchingCubesError(UserError, ImportError):
    """isosurface_method mc-cpu is asked for, but no package for it is installed."""


class EmptySurfaceError(UserError, ValueError):
    """No value of the grid lies on the other side of the threshold."""


def _kuhn_tetrahedra() -> Tensor:
    """Corners [6, 4, 3] of the six tetrahedra along a unit cube's diagonal, all positively oriented.

    Shifted copies fit together face to face (Kuhn's triangulation), so the surface has no cracks between cubes.
    """
    tetrahedra = []
    for axes in permutations(range(3)):
        corners = torch.zeros(4, 3, dtype=torch.long)
        for step, axis in enumerate(axes):
            corners[step + 1 :, axis] = 1
        if torch.det((corners[1:] - corners[0]).double()) < 0:
            corners = corners[[0, 2, 1, 3]]
        tetrahedra.append(corners)
    return torch.stack(tetrahedra)


def _triangle_table() -> Tensor:
    """[16, 2, 3] edge numbers of up to two triangles per pattern of inside corners (bit i: corner i); -1 where none.

    Triangles run counterclockwise seen from outside, in a positively oriented tetrahedron.
    """
    corners = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.double)
    number = {edge: i for i, edge in enumerate(TET_EDGES)}
    table = torch.full((16, 2, 3), -1, dtype=torch.long)
    for code in range(1, 15):
        inside = [i for i in range(4) if code >> i & 1]
        outside = [i for i in range(4) if not code >> i & 1]
        ring = [(inside[0], outside[0]), (inside[0], outside[-1]), (inside[-1], outside[-1]), (inside[-1], outside[0])]
        if len(inside) != 2:
            ring = [(i, o) for i in inside for o in outside]
        outward = corners[outside].mean(0) - corners[inside].mean(0)
        for k in range(len(ring) - 2):
            triangle = [ring[0], ring[k + 1], ring[k + 2]]
            a, b, c = (corners[list(edge)].mean(0) for edge in triangle)
            if torch.dot(torch.linalg.cross(b - a, c - a), outward) < 0:
                triangle.reverse()
            table[code, k] = torch.tensor([number[tuple(sorted(edge))] for edge in triangle])
    return table


class IsosurfaceHelper(nn.Module):
    """Values at `grid_vertices` (in `points_range` along each axis) -> Mesh in the same coordinates."""

    points_range: tuple[float, float] = (0, 1)

    def __init__(self, resolution: int) -> None:
        super().__init__()
        if resolution < 2:
            raise UserError(f"isosurface_resolution is {resolution}; it must be at least 2.")
        self.resolution = resolution
        self._grid_vertices: Tensor | None = None
        self.register_buffer("_probe", torch.empty(0), persistent=False)

    @property
    def grid_vertices(self) -> Tensor:
        """[resolution^3, 3], the last axis running fastest; made at first use, on the module's device."""
        if self._grid_vertices is None or self._grid_vertices.device != self._probe.device:
            line = torch.linspace(*self.points_range, self.resolution, device=self._probe.device)
            self._grid_vertices = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(-1, 3)
        return self._grid_vertices

    def _require_surface(self, level: Tensor) -> None:
        if not (bool((level > 0).any()) and bool((level <= 0).any())):
            raise EmptySurfaceError(
                f"There is no surface: all {level.numel()} values of the field lie on one side of the threshold "
                f"(levels from {float(level.min()):.4g} to {float(level.max()):.4g}). Set another isosurface_threshold."
            )


class MarchingTetrahedraHelper(IsosurfaceHelper):
    """Differentiable marching tetrahedra: vertices depend on the level values and on the deformation of the grid."""

    def __init__(self, resolution: int, tets_path: str | None = None) -> None:
        """`tets_path` is accepted for upstream's signature; the tetrahedra are computed, so no file is read."""
        super().__init__(resolution)
        self.register_buffer("_tets", _kuhn_tetrahedra(), persistent=False)
        self.register_buffer("_table", _triangle_table(), persistent=False)

    def normalize_grid_deformation(self, grid_vertex_offsets: Tensor) -> Tensor:
        """Any offsets -> less than one cell in each direction."""
        low, high = self.points_range
        return (high - low) / self.resolution * torch.tanh(grid_vertex_offsets)

    def _surface_tetrahedra(self, inside: Tensor) -> Tensor:
        """Grid vertex numbers [Nt, 4] of the tetrahedra of all cubes with corners on both sides."""
        n = self.resolution
        blocks = inside.reshape(n, n, n)
        count = torch.zeros(n - 1, n - 1, n - 1, dtype=torch.long, device=inside.device)
        for x, y, z in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
            count += blocks[x : n - 1 + x, y : n - 1 + y, z : n - 1 + z]
        cubes = ((count > 0) & (count < 8)).nonzero()  # [Nc, 3]
        corners = cubes[:, None, None] + self._tets  # [Nc, 6, 4, 3]
        return ((corners[..., 0] * n + corners[..., 1]) * n + corners[..., 2]).reshape(-1, 4)

    def forward(self, level: Tensor, deformation: Tensor | None = None) -> Mesh:
        """Level values [n^3, 1], positive inside, and offsets [n^3, 3] -> Mesh.

        Extras: `grid_vertices` (deformed), `grid_level`, `grid_deformation`, and `tet_edges` [Ne, 2], those tetrahedra
        edges whose ends lie on different sides.
        """
        self._require_surface(level)
        vertices = self.grid_vertices.to(level)
        if deformation is not None:
            vertices = vertices + self.normalize_grid_deformation(deformation)
        inside = level[:, 0] > 0
        tets = self._surface_tetrahedra(inside)
        edges = tets[:, torch.tensor(TET_EDGES, device=tets.device)].sort(dim=-1).values.reshape(-1, 2)  # [6 Nt, 2]
        crossing = inside[edges].sum(-1) == 1
        unique, where = edges[crossing].unique(dim=0, return_inverse=True)
        vertex_of_edge = torch.full((len(edges),), -1, dtype=torch.long, device=edges.device)
        vertex_of_edge[crossing] = where
        codes = (inside[tets].long() << torch.arange(4, device=tets.device)).sum(-1)
        triangles = self._table[codes]  # [Nt, 2, 3] edge numbers within the tetrahedron
        tet, half = (triangles[..., 0] >= 0).nonzero(as_tuple=True)
        faces = vertex_of_edge.reshape(-1, 6)[tet[:, None], triangles[tet, half]]
        first, second = level[unique[:, 0]], level[unique[:, 1]]
        positions = (vertices[unique[:, 1]] * first - vertices[unique[:, 0]] * second) / (first - second)
        extras = {"grid_vertices": vertices, "tet_edges": unique, "grid_level": level, "grid_deformation": deformation}
        return Mesh(v_pos=positions, t_pos_idx=faces, **extras)


class MarchingCubeCPUHelper(IsosurfaceHelper):
    """Marching cubes on the CPU through scikit-image or PyMCubes; not differentiable."""

    def forward(self, level: Tensor, deformation: Tensor | None = None) -> Mesh:
        """Level values [n^3, 1], positive inside -> Mesh. A deformation is not supported."""
        if deformation is not None:
            raise UserError("isosurface_method mc-cpu does not support isosurface_deformable_grid; use mt.")
        self._require_surface(level)
        n = self.resolution
        vertices, faces = _marching_cubes(-level.detach().float().reshape(n, n, n).cpu().numpy())
        positions = torch.tensor(vertices.copy(), dtype=torch.float32, device=level.device)
        positions = scale_tensor(positions, (0, n - 1), self.points_range)
        return Mesh(v_pos=positions, t_pos_idx=torch.tensor(faces.astype("int64"), device=level.device))


def _marching_cubes(values):
    """Vertices and faces of the zero level of an array that is negative inside."""
    try:
        from skimage.measure import marching_cubes
    except ImportError:
        try:
            import mcubes
        except ImportError as error:
            raise MissingMarchingCubesError(
                "isosurface_method mc-cpu needs scikit-image or PyMCubes: pip install scikit-image. "
                "The method mt needs neither."
            ) from error
        return mcubes.marching_cubes(values, 0.0)
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent")
    return vertices, faces
