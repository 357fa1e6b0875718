"""Which point of a mesh lies under each texel of its texture: a rasterizer in texture space, in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 2.0
"""How far around the charts texels are given surface points, in texels. Bilinear lookups reach less than 1.5."""
_TOLERANCE = 1e-3
"""Texels on the edge between two faces must not fall between them by rounding."""


@dataclass(frozen=True)
class SurfacePoints:
    """One surface point for each texel in or near a chart. P texels of an image of H x W."""

    covered: Tensor  # [H, W] bool: texels that have a point
    face: Tensor  # [P] face of each point, texels in row order
    weights: Tensor  # [P, 3] barycentric coordinates on that face, none negative

    def interpolate(self, values: Tensor, faces: Tensor) -> Tensor:
        """Vertex values [N, C], indexed by `faces` [Nf, 3], at the points -> [P, C]."""
        return (values[faces[self.face]] * self.weights[..., None]).sum(dim=1)


def surface_points(v_tex: Tensor, t_tex_idx: Tensor, height: int, width: int, margin: float = MARGIN) -> SurfacePoints:
    """The point of the mesh at each texel's center; near a chart, the chart's nearest point.

    So a bilinear lookup inside a chart only meets colors of this chart, and charts narrower than a texel get one.

    Args:
        v_tex: [Nt, 2] texture coordinates, (0, 0) at the image's upper left corner and (1, 1) at its lower right one.
        t_tex_idx: [Nf, 3] indices into them. Where faces overlap, the last one counts.
        margin: width of the rim around charts, in texels.
    """
    # Texel (row, column) has its center at (column, row).
    texture = v_tex * v_tex.new_tensor([width, height]) - 0.5
    corners = texture[t_tex_idx]  # [Nf, 3, 2]
    face = _faces_at_centers(corners, height, width)
    rim = _rim(texture, t_tex_idx, face < 0, height, width, margin)
    inner = (face >= 0).nonzero()[:, 0]
    centers = torch.stack([inner % width, inner // width], dim=-1).to(texture)
    weights = texture.new_zeros(height * width, 3)
    weights[inner] = _barycentric(corners[face[inner]], centers)
    face[rim.texel], weights[rim.texel] = rim.face, rim.weights
    covered = face >= 0
    return SurfacePoints(covered.reshape(height, width), face[covered], weights[covered])


# ---- inside charts ----


def _faces_at_centers(corners: Tensor, height: int, width: int) -> Tensor:
    """Face [H * W] that covers each texel's center, -1 where none does."""
    a, b, c = corners.unbind(1)
    turn = torch.sign(_cross(b - a, c - a))  # xatlas may mirror charts
    planes = torch.stack([_half_plane(p, q, turn) for p, q in ((a, b), (b, c), (c, a))], dim=1)
    planes[..., 2] += _TOLERANCE
    solid = (turn != 0).nonzero()[:, 0]
    owner, texel = _texels_inside(planes[solid], corners[solid].amin(1), corners[solid].amax(1), height, width)
    face = torch.full((height * width,), -1, dtype=torch.long, device=corners.device)
    return face.scatter_reduce(0, texel, solid[owner], "amax")


def _cross(p: Tensor, q: Tensor) -> Tensor:
    return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]


def _half_plane(p: Tensor, q: Tensor, turn: Tensor) -> Tensor:
    """(a, b, c) [N, 3] with a x + b y + c the distance from the line p q, positive on the side `turn` says."""
    along = torch.nn.functional.normalize(q - p, dim=-1) * turn[:, None]
    normal = torch.stack([-along[:, 1], along[:, 0]], dim=-1)
    return torch.cat([normal, -(normal * p).sum(-1, keepdim=True)], dim=-1)


def _barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """Coordinates [P, 3] of points [P, 2] in triangles [P, 3, 2], none negative, sum 1."""
    a, b, c = corners.unbind(1)
    areas = torch.stack([_cross(c - b, points - b), _cross(a - c, points - c), _cross(b - a, points - a)], dim=-1)
    weights = (areas / _cross(b - a, c - a)[:, None]).nan_to_num(nan=1.0, posinf=1.0, neginf=0.0).clamp(min=0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)


# ---- around charts ----


@dataclass(frozen=True)
class _Rim:
    texel: Tensor  # [R]
    face: Tensor  # [R]
    weights: Tensor  # [R, 3]


def _rim(texture: Tensor, t_tex_idx: Tensor, free: Tensor, height: int, width: int, margin: float) -> _Rim:
    """For each `free` texel [H * W] within `margin` of a chart's border, the border's nearest point."""
    face, corner = _border_edges(t_tex_idx)
    a = texture[t_tex_idx[face, corner]]
    b = texture[t_tex_idx[face, (corner + 1) % 3]]
    length = (b - a).norm(dim=-1, keepdim=True)
    # A border edge of no length is a point; any direction does.
    along = torch.where(length > 0, (b - a) / length.clamp(min=1e-12), a.new_tensor([1.0, 0.0]))
    side = torch.stack([-along[:, 1], along[:, 0]], dim=-1)
    planes = [(side, a), (-side, a), (along, a), (-along, b)]
    planes = torch.stack([torch.cat([n, margin - (n * p).sum(-1, keepdim=True)], dim=-1) for n, p in planes], dim=1)
    low, high = torch.minimum(a, b) - margin, torch.maximum(a, b) + margin
    edge, texel = _texels_inside(planes, low, high, height, width)
    edge, texel = edge[free[texel]], texel[free[texel]]

    offset = torch.stack([texel % width, texel // width], dim=-1).to(texture) - a[edge]
    ahead = ((offset * along[edge]).sum(-1) / length[edge, 0].clamp(min=1e-12)).clamp(0.0, 1.0)
    distance = (offset - ahead[:, None] * (b - a)[edge]).norm(dim=-1)
    nearest = torch.full_like(free, margin, dtype=distance.dtype).scatter_reduce(0, texel, distance, "amin")
    best = distance <= nearest[texel]
    pick = torch.full_like(free, -1, dtype=torch.long)
    pick = pick.scatter_reduce(0, texel[best], best.nonzero()[:, 0], "amax")  # of equals the last, on any device
    chosen = (pick >= 0).nonzero()[:, 0]
    edge, ahead = edge[pick[chosen]], ahead[pick[chosen], None]
    weights = texture.new_zeros(len(chosen), 3)
    weights.scatter_(1, corner[edge, None], 1 - ahead)
    weights.scatter_(1, (corner[edge, None] + 1) % 3, ahead)
    return _Rim(chosen, face[edge], weights)


def _border_edges(t_tex_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Faces [E] and first corners [E] (0, 1 or 2) of the edges that belong to one face only."""
    edges = torch.stack([t_tex_idx, t_tex_idx.roll(-1, dims=1)], dim=-1).sort(dim=-1).values.reshape(-1, 2)
    _, where, count = (edges[:, 0] * (t_tex_idx.max() + 1) + edges[:, 1]).unique(
        return_inverse=True, return_counts=True
    )
    border = (count[where] == 1).nonzero()[:, 0]
    return border // 3, border % 3


# ---- convex polygons on the grid ----


def _texels_inside(planes: Tensor, low: Tensor, high: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """All texels whose centers lie in convex polygons, row by row.

    Args:
        planes: [N, K, 3], half planes a x + b y + c >= 0 that bound each polygon.
        low, high: [N, 2], its bounding box.

    Returns:
        Polygon [P] and texel [P] (row * width + column) of each pair.
    """
    polygon, y = _integers(low[:, 1], high[:, 1], height)
    a, b, c = planes[polygon].unbind(-1)  # [R, K] for R rows of polygons
    rest = b * y[:, None] + c
    bound = -rest / a
    infinite = torch.full_like(bound, torch.inf)
    left = torch.where(a > 0, bound, -infinite).amax(-1).maximum(low[polygon, 0])
    right = torch.where(a < 0, bound, infinite).amin(-1).minimum(high[polygon, 0])
    outside = ((a == 0) & (rest < 0)).any(-1)
    row, x = _integers(left, torch.where(outside, left - 2, right), width)
    return polygon[row], y[row] * width + x


def _integers(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """All integers of the intervals [low, high] within [0, size): interval [M] and integer [M] of each."""
    first = (low - _TOLERANCE).ceil().clamp(min=0, max=size).long()
    last = (high + _TOLERANCE).floor().clamp(min=-1, max=size - 1).long()
    count = (last - first + 1).clamp(min=0)
    owner = torch.arange(len(count), device=count.device).repeat_interleave(count)
    start = count.cumsum(0) - count
    return owner, first[owner] + torch.arange(len(owner), device=count.device) - start[owner]
