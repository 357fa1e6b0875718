"""Triangle meshes in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.errors import UserError
from threestudio.utils.uv_atlas import unwrap


class Mesh:
    """Vertices `v_pos` [Nv, 3] and triangles `t_pos_idx` [Nf, 3] (counterclockwise seen from outside).

    Derived quantities are made when first asked for and kept; what else belongs to the mesh lies in `extras`.
    """

    def __init__(self, v_pos: Tensor, t_pos_idx: Tensor, **kwargs: Any) -> None:
        self.v_pos = v_pos
        self.t_pos_idx = t_pos_idx
        self._v_nrm: Tensor | None = None
        self._v_tng: Tensor | None = None
        self._v_tex: Tensor | None = None
        self._t_tex_idx: Tensor | None = None
        self._v_rgb: Tensor | None = None
        self._edges: Tensor | None = None
        self.extras: dict[str, Any] = {}
        for key, value in kwargs.items():
            self.add_extra(key, value)

    def add_extra(self, k: str, v: Any) -> None:
        self.extras[k] = v

    @property
    def requires_grad(self) -> bool:
        return self.v_pos.requires_grad

    # ---- derived ----

    @property
    def v_nrm(self) -> Tensor:
        """Vertex normals [Nv, 3]: faces weighted by area; (0, 0, 1) where a vertex has no area about it."""
        if self._v_nrm is None:
            self._v_nrm = self._compute_vertex_normals()
        return self._v_nrm

    def _compute_vertex_normals(self) -> Tensor:
        a, b, c = self.v_pos[self.t_pos_idx].unbind(1)
        face_normals = torch.cross(b - a, c - a, dim=-1)
        total = torch.zeros_like(self.v_pos)
        total = total.index_add(0, self.t_pos_idx.reshape(-1), face_normals.repeat_interleave(3, dim=0))
        empty = dot_self(total) <= 1e-20
        return F.normalize(torch.where(empty, total.new_tensor([0.0, 0.0, 1.0]), total), dim=-1)

    @property
    def v_tng(self) -> Tensor:
        """Vertex tangents [Nv, 3], along growing u, orthogonal to the normals."""
        if self._v_tng is None:
            self._v_tng = self._compute_vertex_tangents()
        return self._v_tng

    def _compute_vertex_tangents(self) -> Tensor:
        p, uv = self.v_pos[self.t_pos_idx], self.v_tex[self.t_tex_idx]
        edge1, edge2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
        uv1, uv2 = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
        area = uv1[:, :1] * uv2[:, 1:] - uv1[:, 1:] * uv2[:, :1]
        safe = torch.where(area.abs() < 1e-12, torch.full_like(area, 1e-12), area)
        tangents = F.normalize((edge1 * uv2[:, 1:] - edge2 * uv1[:, 1:]) / safe, dim=-1)
        total = torch.zeros_like(self.v_pos)
        total = total.index_add(0, self.t_pos_idx.reshape(-1), tangents.repeat_interleave(3, dim=0))
        total = total - (total * self.v_nrm).sum(-1, keepdim=True) * self.v_nrm
        return F.normalize(total, dim=-1)

    @property
    def v_tex(self) -> Tensor:
        """Texture coordinates [Nt, 2] in [0, 1]; unwrapped at first use."""
        if self._v_tex is None:
            self.unwrap_uv()
        return self._v_tex

    @property
    def t_tex_idx(self) -> Tensor:
        """Triangles as indices [Nf, 3] into `v_tex`; unwrapped at first use."""
        if self._t_tex_idx is None:
            self.unwrap_uv()
        return self._t_tex_idx

    @property
    def v_rgb(self) -> Tensor | None:
        """Vertex colors [Nv, 3] in [0, 1], if they were set."""
        return self._v_rgb

    def set_vertex_color(self, v_rgb: Tensor) -> None:
        if len(v_rgb) != len(self.v_pos):
            raise UserError(
                f"set_vertex_color: {len(v_rgb)} colors for {len(self.v_pos)} vertices; the numbers must agree."
            )
        self._v_rgb = v_rgb

    @property
    def edges(self) -> Tensor:
        """Unique edges [Ne, 2], the smaller vertex number first."""
        if self._edges is None:
            pairs = torch.cat([self.t_pos_idx[:, [0, 1]], self.t_pos_idx[:, [1, 2]], self.t_pos_idx[:, [2, 0]]])
            self._edges = pairs.sort(dim=-1).values.unique(dim=0)
        return self._edges

    # ---- changes ----

    def remove_outlier(self, outlier_n_faces_threshold: int | float) -> Mesh:
        """The mesh without small connected parts, as a new mesh without vertices nobody uses.

        Args:
            outlier_n_faces_threshold: parts with fewer faces go. An int is a number of faces, a float a fraction of the
                largest part's.

        A mesh that carries gradients is returned unchanged, since removal would cut them.
        """
        if self.requires_grad:
            return self
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        i, j = self.edges.cpu().numpy().T
        count = len(self.v_pos)
        _, labels = connected_components(coo_matrix((np.ones(len(i)), (i, j)), shape=(count, count)), directed=False)
        face_part = torch.as_tensor(labels, device=self.t_pos_idx.device).long()[self.t_pos_idx[:, 0]]
        sizes = torch.bincount(face_part, minlength=1)
        limit = outlier_n_faces_threshold
        if isinstance(limit, float):
            limit = int(sizes.max()) * limit
        keep = sizes[face_part] >= limit
        if not keep.any():
            raise UserError(
                f"All parts of the surface have fewer than {outlier_n_faces_threshold} faces (the largest has "
                f"{int(sizes.max())}), so none would be left. Lower isosurface_outlier_n_faces_threshold."
            )
        used, faces = self.t_pos_idx[keep].unique(return_inverse=True)
        mesh = Mesh(self.v_pos[used], faces, **self.extras)
        if self._v_rgb is not None:
            mesh.set_vertex_color(self._v_rgb[used])
        return mesh

    def unwrap_uv(
        self,
        xatlas_chart_options: Mapping[str, Any] | None = None,
        xatlas_pack_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Fill `v_tex` and `t_tex_idx` with an atlas made by xatlas; options are attributes of its ChartOptions,
        PackOptions."""
        uvs, indices = unwrap(
            self.v_pos.detach().cpu().numpy(),
            self.t_pos_idx.cpu().numpy(),
            xatlas_chart_options,
            xatlas_pack_options,
        )
        self._v_tex = torch.as_tensor(uvs, device=self.v_pos.device)
        self._t_tex_idx = torch.as_tensor(indices, device=self.v_pos.device)

    # ---- regularizers ----

    def normal_consistency(self) -> Tensor:
        """Mean over edges of 1 - cos of the angle between the normals at the two ends."""
        normals = self.v_nrm[self.edges]
        return (1.0 - F.cosine_similarity(normals[:, 0], normals[:, 1], dim=-1)).mean()

    def laplacian(self) -> Tensor:
        """Mean over vertices of the norm of the uniform Laplacian, the sum of (vertex - neighbor) over its
        neighbors."""
        i, j = self.edges.unbind(-1)
        difference = self.v_pos[i] - self.v_pos[j]
        total = torch.zeros_like(self.v_pos).index_add(0, i, difference).index_add(0, j, -difference)
        return total.norm(dim=-1).mean()


def dot_self(x: Tensor) -> Tensor:
    """Squared length over the last axis, which stays with length 1."""
    return (x * x).sum(-1, keepdim=True)
