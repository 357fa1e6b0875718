"""Colored meshes, and uniform samples of a mesh's surface with its colors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..gaussians.ply import GaussianFileError
from .files import load_meshes
from .points import ColoredPoints, linear_to_srgb, srgb_to_linear
from .sphere import choose_colors

_TEXTURE_STEPS = 96
"""Textured triangles are cut until no side is longer than this share of the object's: colors then sit on vertices."""


@dataclass(frozen=True)
class ColoredMesh:
    """Triangles with a color at each vertex. V vertices, F faces."""

    vertices: Tensor
    """[V, 3] float32, z up."""
    faces: Tensor
    """[F, 3] int64, indices of vertices; counterclockwise seen from outside."""
    colors: Tensor
    """[V, 3] float32 in [0, 1], as displayed (sRGB)."""

    @property
    def summary(self) -> str:
        """Its size in words."""
        return f"{len(self.vertices)} vertices, {len(self.faces)} faces"

    def check(self) -> None:
        """Raises ValueError for shapes, types, indices or values that no mesh has."""
        vertices, faces, colors = self.vertices, self.faces, self.colors
        if vertices.dtype != torch.float32 or colors.dtype != torch.float32 or faces.dtype != torch.int64:
            raise ValueError("its tensors have other types")
        if vertices.shape != colors.shape or {vertices.dim(), faces.dim()} != {2} or {vertices.shape[1], faces.shape[1]} != {3}:
            raise ValueError("its tensors have other shapes")
        if len(faces) == 0 or not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
            raise ValueError("its faces name no vertices")
        if not bool(vertices.isfinite().all()) or not bool(((colors >= 0) & (colors <= 1)).all()):
            raise ValueError("it has values out of range")


def mesh_from_file(path: str | os.PathLike[str], *, color: str | tuple[float, float, float] | list[float] = "gray") -> ColoredMesh:
    """Everything in a mesh file as one mesh in the file's axes and units, colored as it is.

    Where colors are not at the vertices (textures, face colors), vertices of their own carry them: textured triangles are cut
    into ones shorter than a hundredth of the object.

    Args:
        path: any triangle mesh trimesh reads.
        color: for a mesh without colors, as `choose_colors` takes it ("gray" and "random" from seed 0).

    Raises:
        GaussianFileError: missing, unreadable, no triangles, no area, or vertices that are not finite.
    """
    meshes = load_meshes(path)
    corners = np.concatenate([np.asarray(m.vertices, np.float64) for m in meshes])
    step = float(np.ptp(corners, axis=0).max()) / _TEXTURE_STEPS
    if not step > 0:
        raise GaussianFileError(f"{path}: its triangles have no area")
    parts = [_colored(mesh, step, color) for mesh in meshes]
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]]).tolist()
    whole = ColoredMesh(
        torch.cat([p.vertices for p in parts]),
        torch.cat([p.faces + offset for p, offset in zip(parts, offsets)]),
        torch.cat([p.colors for p in parts]),
    )
    if not float(triangle_areas(whole.vertices.double(), whole.faces).sum()) > 0:
        raise GaussianFileError(f"{path}: its triangles have no area")
    return whole


def points_on_mesh(mesh: ColoredMesh, count: int, generator: torch.Generator) -> ColoredPoints:
    """Exactly `count` points, uniform over the surface (by area), with colors interpolated between the vertices.

    `generator`: on the CPU. Raises GaussianFileError if the surface has no area.
    """
    corners, weights = sample_triangles(triangle_areas(mesh.vertices.double(), mesh.faces), count, generator)
    at = [(values.double()[mesh.faces[corners]] * weights[..., None]).sum(1).float() for values in (mesh.vertices, mesh.colors)]
    return ColoredPoints(at[0], at[1].clamp(0.0, 1.0))


def points_from_mesh(
    path: str | os.PathLike[str],
    count: int,
    generator: torch.Generator,
    *,
    color: str | tuple[float, float, float] | list[float] = "gray",
) -> ColoredPoints:
    """Exactly `count` points, uniform over the surface (by area) of everything in the file, colored as the mesh is.

    Vertex colors are interpolated, face colors taken as they are, textures looked up at the interpolated coordinates.

    Args:
        path: any triangle mesh trimesh reads (.obj with its .mtl, .glb, .ply, .stl, .off, ...).
        count: >= 1.
        generator: CPU generator.
        color: for a mesh without colors, as `choose_colors` takes it.

    Raises:
        GaussianFileError: missing, unreadable, no triangles, no area, or vertices that are not finite.
    """
    if count < 1:
        raise ConfigError(f"num_points is {count}; it must be at least 1")
    meshes = load_meshes(path)
    areas = [triangle_areas(_tensor(m.vertices), torch.from_numpy(np.array(m.faces, dtype=np.int64))) for m in meshes]
    if not float(sum(a.sum() for a in areas)) > 0:
        raise GaussianFileError(f"{path}: its triangles have no area")
    faces, weights = sample_triangles(torch.cat(areas), count, generator)
    default = choose_colors(count, color, generator)
    points, colors = torch.zeros(count, 3), default
    first = 0
    for mesh, area in zip(meshes, areas):
        here = (faces >= first) & (faces < first + len(area))
        chosen, weight = faces[here] - first, weights[here]
        corners = torch.from_numpy(np.array(mesh.faces, dtype=np.int64))[chosen]  # [R, 3]
        points[here] = (_tensor(mesh.vertices)[corners] * weight[..., None]).sum(1).float()
        found = _colors_at(mesh, chosen, corners, weight)
        if found is not None:
            colors[here] = found.float().clamp(0.0, 1.0)
        first += len(area)
    return ColoredPoints(points, colors)


def points_on_triangles(
    vertices: Tensor, faces: Tensor, count: int, generator: torch.Generator, color: Any = "gray"
) -> ColoredPoints:
    """`count` points, uniform over plain triangles (vertices [V, 3], faces [F, 3]), in one color or random ones."""
    chosen, weights = sample_triangles(triangle_areas(vertices.double(), faces), count, generator)
    points = (vertices.double()[faces[chosen]] * weights[..., None]).sum(1)
    return ColoredPoints(points.float(), choose_colors(count, color, generator))


def triangle_areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F] areas of the triangles `faces` [F, 3] (indices into `vertices` [V, 3])."""
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=-1) / 2


def sample_triangles(areas: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Triangles [count] drawn by area, and float64 barycentric weights [count, 3] uniform inside each.

    Raises GaussianFileError where there is no area.
    """
    cumulative = areas.double().cumsum(0)
    if len(areas) == 0 or not cumulative[-1] > 0:
        raise GaussianFileError("the surface to put points on has no area")
    at = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    faces = torch.searchsorted(cumulative, at, right=True).clamp_(max=len(areas) - 1)
    u, v = torch.rand(2, count, generator=generator, dtype=torch.float64)
    root = u.sqrt()  # Osada et al. 2002, "Shape distributions", section 4.2
    return faces, torch.stack([1 - root, root * (1 - v), root * v], dim=-1)


def _colored(mesh: Any, step: float, color: Any) -> ColoredMesh:
    """One of trimesh's meshes with the colors moved to vertices; textured triangles are cut to sides below `step`."""
    vertices, faces = _tensor(mesh.vertices), torch.from_numpy(np.array(mesh.faces, dtype=np.int64))
    kind = getattr(getattr(mesh, "visual", None), "kind", None)
    if kind == "vertex":
        used, faces = faces.unique(return_inverse=True)
        colors = _tensor(mesh.visual.vertex_colors)[used, :3] / 255.0
        return ColoredMesh(vertices[used].float(), faces, colors.float())
    if kind == "texture" and _image_of(mesh.visual.material) is not None:
        pieces, source = _cut(vertices, faces, step)
    else:
        pieces, source = vertices[faces], torch.arange(len(faces))
    original = faces[source].repeat_interleave(3, 0)  # [3 P, 3] corners of the triangle that each piece's corner lies in
    weights = _barycentric(vertices[original], pieces.reshape(-1, 3))
    colors = _colors_at(mesh, source.repeat_interleave(3), original, weights)
    if colors is None:
        used, faces = faces.unique(return_inverse=True)
        return ColoredMesh(vertices[used].float(), faces, choose_colors(len(used), color, torch.Generator().manual_seed(0)))
    own = torch.arange(len(pieces) * 3).reshape(-1, 3)
    return ColoredMesh(pieces.reshape(-1, 3).float(), own, colors.float().clamp(0.0, 1.0))


def _cut(vertices: Tensor, faces: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Pieces [P, 3, 3] with no side above `step`, and the face [P] each comes from."""
    from trimesh.remesh import subdivide_to_size

    at, pieces, source = subdivide_to_size(vertices.numpy(), faces.numpy(), step, max_iter=20, return_index=True)
    return torch.from_numpy(np.asarray(at)[pieces]), torch.from_numpy(np.asarray(source, dtype=np.int64))


def _barycentric(triangles: Tensor, points: Tensor) -> Tensor:
    """[R, 3] coordinates of points [R, 3] in triangles [R, 3, 3]; thirds where a triangle has no area."""
    a, b, c = triangles.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    square = (normal * normal).sum(-1)
    v = (torch.linalg.cross(points - a, c - a) * normal).sum(-1) / square
    w = (torch.linalg.cross(b - a, points - a) * normal).sum(-1) / square
    weights = torch.stack([1 - v - w, v, w], dim=-1)
    return torch.where((square > 0)[:, None], weights, weights.new_full((), 1 / 3))


def _colors_at(mesh: Any, faces: Tensor, corners: Tensor, weights: Tensor) -> Tensor | None:
    """[R, 3] colors in [0, 1] at points of a mesh given by face, its corners and barycentric weights; None: it has none."""
    visual = getattr(mesh, "visual", None)
    kind = getattr(visual, "kind", None)
    if kind == "vertex":
        return (_tensor(visual.vertex_colors)[corners][..., :3] * weights[..., None]).sum(1) / 255.0
    if kind == "face":
        return _tensor(visual.face_colors)[faces][:, :3] / 255.0
    if kind == "texture":
        return _texture_colors(visual, corners, weights)
    return None


def _texture_colors(visual: Any, corners: Tensor, weights: Tensor) -> Tensor | None:
    from trimesh.visual.color import uv_to_interpolated_color

    material = visual.material
    factor = getattr(material, "baseColorFactor", None)
    image = _image_of(material)
    if image is None or visual.uv is None:
        if factor is not None:
            return _times_factor(torch.ones(len(corners), 3, dtype=torch.float64), factor)
        plain = getattr(material, "diffuse", None)
        return None if plain is None else (_tensor(plain)[:3] / 255.0).expand(len(corners), 3)
    uv = (_tensor(visual.uv)[corners] * weights[..., None]).sum(1)
    colors = torch.from_numpy(uv_to_interpolated_color(uv.numpy(), image)[:, :3].astype(np.float64)) / 255.0
    return colors if factor is None else _times_factor(colors, factor)


def _times_factor(colors: Tensor, factor: Any) -> Tensor:
    """Display colors [R, 3] of a PBR texture with its material's factor, which is of linear light (glTF 2.0, section 3.9.2)."""
    return linear_to_srgb(srgb_to_linear(colors) * _tensor(factor)[:3] / 255.0)


def _image_of(material: Any) -> Any:
    return getattr(material, "baseColorTexture", None) or getattr(material, "image", None)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))
