"""The triangle rasterizer that upstream builds on nvdiffrast, kept as a name extensions may import.

nvdiffrast's licence is non-commercial, so this core neither ships nor installs it. The class is importable, because
extensions import it at their top; making one asks for nvdiffrast on the user's own machine and says so if it isn't
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from threestudio.errors import UserError


class MissingRasterizerError(UserError, ImportError):
    """nvdiffrast is asked for but not installed."""


def _nvdiffrast() -> ModuleType:
    try:
        import nvdiffrast.torch as dr
    except ImportError as error:
        raise MissingRasterizerError(
            "NVDiffRasterizerContext needs the package nvdiffrast, which is not installed. It is not on PyPI and its "
            "licence forbids commercial use; if that suits you: pip install git+https://github.com/NVlabs/nvdiffrast"
        ) from error
    return dr


class NVDiffRasterizerContext:
    """Thin wrapper that gives nvdiffrast's functions the shapes threestudio uses. Resolutions are (H, W)."""

    def __init__(self, context_type: str, device: torch.device | str) -> None:
        makers = {"gl": "RasterizeGLContext", "cuda": "RasterizeCudaContext"}
        if context_type not in makers:
            raise UserError(f"context_type is {context_type!r}; it must be 'gl' or 'cuda'.")
        self.device = device
        self._dr = _nvdiffrast()
        self.ctx = getattr(self._dr, makers[context_type])(device=device)

    def vertex_transform(self, verts: Tensor, mvp_mtx: Tensor) -> Tensor:
        """Vertices [Nv, 3] under B matrices [B, 4, 4] -> clip space [B, Nv, 4]."""
        ones = torch.ones_like(verts[:, :1])
        return torch.matmul(torch.cat([verts, ones], dim=-1), mvp_mtx.transpose(-1, -2))

    def rasterize(self, pos: Tensor, tri: Tensor, resolution: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Clip-space positions [B, Nv, 4], triangles [Nf, 3] -> fragments [B, H, W, 4] and their derivatives."""
        size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
        return self._dr.rasterize(self.ctx, pos.float(), tri.int(), size, grad_db=True)

    def rasterize_one(self, pos: Tensor, tri: Tensor, resolution: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `rasterize` for one image: [Nv, 4] -> [H, W, 4]."""
        fragments, derivatives = self.rasterize(pos[None], tri, resolution)
        return fragments[0], derivatives[0]

    def antialias(self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> Tensor:
        """Smooth silhouettes so that they pass gradients: color [B, H, W, C] -> the same shape."""
        return self._dr.antialias(color.float(), rast, pos.float(), tri.int())

    def interpolate(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Any = None, diff_attrs: Any = None
    ) -> tuple[Tensor, Any]:
        """Vertex attributes [B, Nv, C] at the fragments -> [B, H, W, C] and their pixel derivatives."""
        return self._dr.interpolate(attr.float(), rast, tri.int(), rast_db=rast_db, diff_attrs=diff_attrs)

    def interpolate_one(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Any = None, diff_attrs: Any = None
    ) -> tuple[Tensor, Any]:
        """As `interpolate` with attributes [Nv, C] shared by all images."""
        return self.interpolate(attr[None], rast, tri, rast_db, diff_attrs)
