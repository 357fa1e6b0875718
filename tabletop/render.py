"""Sphere tracing of batches of scenes in plain torch: eager on a CPU, through torch.compile on a GPU.

Rays of all scenes of a chunk are marched together. Every few steps the finished ones are dropped; the work is always
handed over in pieces of one fixed size, so that a compiled step sees one shape only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable

import torch
from torch import Tensor

from .cameras import camera_rays
from .materials import METALLIC, environment, surface_color
from .sdf import nearest_primitive, scene_distance
from .world import Scenes

_STEPS, _ROUNDS = 8, 9  # steps between compactions, compactions
_RELAX = 0.92  # tapered shapes and ellipsoids are not exact distances
_HIT, _LATE_HIT = 0.0015, 0.006  # distance that counts as surface; ... for rays that still creep at the end
_NORMAL_STEP = 0.002
_CPU_RAYS, _GPU_RAYS = 1 << 13, 1 << 18
_CPU_PIXELS, _GPU_PIXELS = 1 << 20, 1 << 24  # supersampled pixels per chunk of scenes


@dataclass
class Shading:
    """What the shader needs of each scene, [B, ...]."""

    rows: Tensor
    colors: Tensor
    is_main: Tensor
    pattern: Tensor
    period: Tensor
    phase: Tensor
    light: Tensor
    ambient: Tensor
    diffuse: Tensor
    specular: Tensor


def _march(rows: Tensor, scene: Tensor, eye: Tensor, rays: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """_STEPS steps of sphere tracing. rows [B, ROW, P]; scene [N]; eye, rays [N, 3]; t [N]. Returns t and the last distance."""
    own = rows[scene]
    distance = torch.zeros_like(t)
    for _ in range(_STEPS):
        distance = scene_distance(own, eye + t[:, None] * rays)
        t = torch.where(distance > _HIT, t + _RELAX * distance, t)
    return t, distance


def _normals(own: Tensor, points: Tensor) -> Tensor:
    """Gradient of the distance by the tetrahedron's four corners."""
    total = torch.zeros_like(points)
    for corner in ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0)):
        offset = torch.tensor(corner, device=points.device)
        total = total + offset * scene_distance(own, points + _NORMAL_STEP * offset)[:, None]
    return torch.nn.functional.normalize(total, dim=-1)


def _occlusion(own: Tensor, points: Tensor, normals: Tensor) -> Tensor:
    """Ambient light that reaches the point, 1 in the open."""
    hidden = torch.zeros_like(points[:, 0])
    for reach, weight in ((0.03, 5.0), (0.09, 2.2), (0.2, 0.7)):
        hidden = hidden + weight * (reach - scene_distance(own, points + reach * normals)).clamp_min(0)
    return (1 - hidden).clamp(0.35, 1.0)


def _shade(s: Shading, scene: Tensor, eye: Tensor, rays: Tensor, t: Tensor) -> Tensor:
    """Colour [N, 3] of the surface points at distance t."""
    own = s.rows[scene]
    points = eye + t[:, None] * rays
    normals = _normals(own, points)
    open_sky = _occlusion(own, points, normals)[:, None]
    part = nearest_primitive(own, points)
    base, main = s.colors[scene, part], s.is_main[scene, part]
    pattern = s.pattern[scene]
    albedo = surface_color(base, main, points, normals, pattern, s.period[scene], s.phase[scene])
    light = s.light[scene]
    facing = (normals * light).sum(-1, keepdim=True).clamp_min(0)
    halfway = torch.nn.functional.normalize(light - rays, dim=-1)
    gloss = (normals * halfway).sum(-1, keepdim=True).clamp_min(0).pow(40) * s.specular[scene][:, None]
    sky = 0.88 + 0.12 * normals[:, 2:]
    matte = albedo * (s.ambient[scene][:, None] * sky * open_sky + s.diffuse[scene][:, None] * facing) + gloss
    mirrored = rays - 2 * (rays * normals).sum(-1, keepdim=True) * normals
    shine = environment(mirrored)[:, None]
    # Bright reflections of metal lose their tint, as a clear coat's do.
    metal = albedo * (0.18 + 0.95 * shine) * (0.5 + 0.5 * open_sky) + 0.30 * (shine - 0.9).clamp_min(0) + 0.03 * shine
    metallic = ((pattern == METALLIC).to(base.dtype) * main)[:, None]
    return (matte + metallic * (metal - matte)).clamp(0, 1)


@lru_cache(maxsize=None)
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


def _in_pieces(function: Callable, active: Tensor, size: int, pad: bool, outputs: tuple[Tensor, ...]) -> None:
    """Calls function(indices) on pieces of `active` [A] and writes its results into `outputs` at those indices.

    pad: repeat the last index so that every piece has exactly `size` entries (they write the same value).
    """
    for piece in active.split(size):
        if pad and len(piece) < size:
            piece = torch.cat([piece, piece[-1:].expand(size - len(piece))])
        results = function(piece)
        for output, result in zip(outputs, results if isinstance(results, tuple) else (results,)):
            output[piece] = result


def _trace(scenes: Scenes, eye: Tensor, rays: Tensor, march: Callable, piece: int, pad: bool) -> tuple[Tensor, Tensor]:
    """Distances along all rays and the indices that hit. eye [B, 3], rays [B, R, 3]. Returns t [B * R], hits [A]."""
    count, per_scene = rays.shape[:2]
    along = -(rays @ eye[:, :, None])[..., 0]
    inside = along.square() - (eye.square().sum(-1) - scenes.radius.square())[:, None]
    half = inside.clamp_min(0).sqrt()
    t, far = (along - half).clamp_min(0.01).reshape(-1), (along + half).reshape(-1)
    distance = torch.full_like(t, 1e3)
    flat = rays.reshape(-1, 3)
    active = ((inside > 0) & (along > 0)).reshape(-1).nonzero()[:, 0]

    def step(index: Tensor) -> tuple[Tensor, Tensor]:
        scene = index // per_scene
        return march(scenes.rows, scene, eye[scene], flat[index], t[index])

    for _ in range(_ROUNDS):
        if len(active) == 0:
            break
        _in_pieces(step, active, piece, pad, (t, distance))
        active = active[(distance[active] > _HIT) & (t[active] < far[active])]
    hits = ((distance < _LATE_HIT) & (t < far + _LATE_HIT)).nonzero()[:, 0]
    return t, hits


def _backdrop(scenes: Scenes, eye: Tensor, rays: Tensor, size: int) -> Tensor:
    """Background [B, R, 3]: a vertical gradient, darkened where a soft shadow lies on an invisible floor."""
    height = torch.linspace(0, 1, size, device=eye.device)[None, :, None, None]
    top, bottom = scenes.background[:, None, None, 0], scenes.background[:, None, None, 1]
    color = (top + (bottom - top) * height).expand(-1, -1, size, -1).reshape(len(eye), -1, 3)
    down = rays[..., 2].clamp_max(-1e-3)
    t = (-0.5 - eye[:, 2:]) / down
    x, y = eye[:, :1] + t * rays[..., 0], eye[:, 1:2] + t * rays[..., 1]
    seen = torch.sigmoid((-rays[..., 2] - 0.08) * 40)  # fades toward the horizon
    shadow = scenes.floor_shadow[:, None] * seen * torch.exp(-(x * x + y * y) / 0.2)
    return color * (1 - shadow)[..., None]


def _render_chunk(scenes: Scenes, size: int, supersample: int, compile: bool) -> tuple[Tensor, Tensor]:
    fine = size * supersample
    march, shade = (_compiled(_march), _compiled(_shade)) if compile else (_march, _shade)
    piece = _GPU_RAYS if scenes.rows.is_cuda else _CPU_RAYS
    eye, rays = camera_rays(scenes.azimuth, scenes.elevation, scenes.distance, scenes.fovy, scenes.center, fine)
    t, hits = _trace(scenes, eye, rays, march, piece, compile)
    image = _backdrop(scenes, eye, rays, fine).reshape(-1, 3)
    alpha = torch.zeros_like(t)
    alpha[hits] = 1.0
    shading = Shading(*(getattr(scenes, name) for name in Shading.__dataclass_fields__))
    flat, per_scene = rays.reshape(-1, 3), fine * fine

    def color(index: Tensor) -> Tensor:
        scene = index // per_scene
        return shade(shading, scene, eye[scene], flat[index], t[index])

    _in_pieces(color, hits, piece, compile, (image,))
    image = image.reshape(-1, fine, fine, 3).permute(0, 3, 1, 2)
    alpha = alpha.reshape(-1, 1, fine, fine)
    return torch.nn.functional.avg_pool2d(image, supersample), torch.nn.functional.avg_pool2d(alpha, supersample)


@torch.no_grad()
def render_float(scenes: Scenes, size: int = 128, supersample: int = 2, compile: bool = False) -> tuple[Tensor, Tensor]:
    """Image [B, 3, size, size] in [0, 1] and coverage [B, 1, size, size] of the object, on the scenes' device."""
    limit = (_GPU_PIXELS if scenes.rows.is_cuda else _CPU_PIXELS) // (size * supersample) ** 2
    chunk, count = max(1, limit), len(scenes)
    images, alphas = [], []
    for start in range(0, count, chunk):
        index = torch.arange(start, start + chunk if compile else min(start + chunk, count), device=scenes.rows.device)
        image, alpha = _render_chunk(scenes[index.clamp_max(count - 1)], size, supersample, compile)
        images.append(image[: count - start])
        alphas.append(alpha[: count - start])
    return torch.cat(images), torch.cat(alphas)


def render(scenes: Scenes, size: int = 128, supersample: int = 2, compile: bool = False) -> Tensor:
    """Renders scenes to uint8 [B, 3, size, size] on their device.

    Args:
        supersample: rays per pixel and side. compile: use torch.compile (fixed shapes; the first call takes about a
            minute, and batches are padded to the chunk of scenes, 256 at size 128 on a GPU).
    """
    image, _ = render_float(scenes, size, supersample, compile)
    return (image * 255 + 0.5).clamp(0, 255).to(torch.uint8)
