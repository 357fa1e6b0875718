"""Objects of the world with signed distances and colors at many points: `python -m tabletop.shap_e.objects --output build/tabletop/objects`.

Two sets, disjoint by seed: `train`, and `heldout`, whose combinations of family, color and pattern `train` never shows. A run that was stopped goes
on with the shards that are missing. Every shard depends on (seed, shard number) alone.
"""
from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cameras import directions
from ..make_data import ShardPlan, plan_shards
from ..materials import METALLIC, environment, surface_color
from ..render import _normals, _occlusion
from ..sdf import nearest_primitive, scene_distance
from ..training import default_device
from ..world import Labels, Scenes, sample_labels, sample_scenes

POINTS = 4096
"""Points of each object."""
VOLUME = 1.6
"""Length of the world's unit in Shap-E's volume [-1, 1]^3: the largest objects, of radius 0.58, then nearly fill it."""
_CANDIDATES = 4
_NEAR = 0.02
_SCENES = 64  # scenes whose points are worked out together


@dataclass
class Objects:
    """N objects with M points each. Lengths in the world's units; points and colors in half precision."""

    rows: Tensor  # [N, ROW, P] packed primitives
    colors: Tensor  # [N, P, 3]
    is_main: Tensor  # [N, P]
    family: Tensor  # [N] int64
    color: Tensor  # [N] int64, -1 natural
    pattern: Tensor  # [N] int64
    period: Tensor  # [N]
    phase: Tensor  # [N]
    points: Tensor  # [N, M, 3]
    distance: Tensor  # [N, M] signed, negative inside
    seen: Tensor  # [N, M, 3] color of the surface next to the point, in average light

    def __len__(self) -> int:
        return len(self.family)

    def __getitem__(self, index: slice | Tensor) -> Objects:
        return Objects(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Objects:
        """A copy on another device."""
        return Objects(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def labels(self) -> Labels:
        return Labels(self.family, self.color, self.pattern)


@lru_cache(maxsize=None)
def _average_facing() -> Tensor:
    """Mean of max(0, normal . light) over the lights of the world, for a normal's z of -1 to 1 in 64 steps."""
    z = torch.linspace(-1, 1, 65)
    normals = torch.stack([(1 - z * z).clamp_min(0).sqrt(), torch.zeros_like(z), z], -1)
    azimuth, elevation = torch.meshgrid(torch.arange(0.0, 360.0, 5.0), torch.arange(20.0, 75.1, 5.0), indexing="ij")
    return (normals @ directions(azimuth.reshape(-1), elevation.reshape(-1)).T).clamp_min(0).mean(1)


def average_color(scenes: Scenes, scene: Tensor, points: Tensor) -> Tensor:
    """Color [N, 3] in [0, 1] of surface points [N, 3] of the scenes with index `scene` [N], in the mean of all lights, seen from above the surface."""
    own = scenes.rows[scene]
    normals = _normals(own, points)
    part = nearest_primitive(own, points)
    main = scenes.is_main[scene, part]
    pattern = scenes.pattern[scene]
    albedo = surface_color(scenes.colors[scene, part], main, points, normals, pattern, scenes.period[scene], scenes.phase[scene])
    open_sky = _occlusion(own, points, normals)[:, None]
    z = normals[:, 2:]
    facing = _average_facing().to(z)[((z + 1) * 32).round().long().clamp(0, 64)]
    matte = albedo * (0.725 * (0.88 + 0.12 * z) * open_sky + 0.31 * facing)  # means of the world's ambient and diffuse light
    shine = environment(normals)[:, None]
    metal = albedo * (0.18 + 0.95 * shine) * (0.5 + 0.5 * open_sky) + 0.30 * (shine - 0.9).clamp_min(0) + 0.03 * shine
    metallic = ((pattern == METALLIC).to(albedo.dtype) * main)[:, None]
    return (matte + metallic * (metal - matte)).clamp(0, 1)


def random_points(count: int, objects: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """[objects, count, 3]: three quarters in the ball that holds any object, the rest anywhere in Shap-E's volume."""
    inner = 3 * count // 4
    way = torch.nn.functional.normalize(torch.randn(objects, inner, 3, generator=generator, device=device), dim=-1)
    ball = 0.6 * way * torch.rand(objects, inner, 1, generator=generator, device=device) ** (1 / 3)
    cube = (2 * torch.rand(objects, count - inner, 3, generator=generator, device=device) - 1) / VOLUME
    return torch.cat([ball, cube], dim=1)


def to_surface(rows: Tensor, points: Tensor) -> Tensor:
    """Points [N, 3] moved along the gradient by their distance: onto the surface, where that is smooth."""
    return points - scene_distance(rows, points)[:, None] * _normals(rows, points)


def sample_points(scenes: Scenes, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points [B, count, 3], their signed distances [B, count] and the colors [B, count, 3] of the surface next to them.

    Half of the points lie within some hundredths of the surface, the others all over Shap-E's volume. `generator` is on the scenes' device.
    """
    device, objects = scenes.rows.device, len(scenes)
    near = count // 2
    points = random_points(_CANDIDATES * count, objects, generator, device)
    scene = torch.arange(objects, device=device)[:, None].expand(-1, points.shape[1])
    distance = scene_distance(scenes.rows[scene.reshape(-1)], points.reshape(-1, 3)).view(objects, -1)
    closest = distance.abs().topk(near, dim=1, largest=False).indices
    others = torch.rand(distance.shape, generator=generator, device=device).topk(count - near, dim=1).indices
    chosen = points.gather(1, torch.cat([closest, others], dim=1)[..., None].expand(-1, -1, 3))
    # The nearest ones go to the surface and are spread about it.
    onto = to_surface(scenes.rows[scene[:, :near].reshape(-1)], chosen[:, :near].reshape(-1, 3)).view(objects, near, 3)
    width = _NEAR * torch.rand(objects, near, 1, generator=generator, device=device)
    chosen[:, :near] = onto + width * torch.randn(objects, near, 3, generator=generator, device=device)
    flat, scene = chosen.reshape(-1, 3), scene[:, :count].reshape(-1)
    own = scenes.rows[scene]
    distance = scene_distance(own, flat)
    seen = average_color(scenes, scene, to_surface(own, flat))
    return chosen, distance.view(objects, count), seen.view(objects, count, 3)


def sample_objects(count: int, seed: int, split: str) -> Scenes:
    """The scenes of one shard, on the CPU."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    return sample_scenes(sample_labels(count, generator, split=split), generator)


@torch.no_grad()
def objects_of(scenes: Scenes, seed: int, device: torch.device, count: int = POINTS) -> Objects:
    """The objects of the scenes with `count` points each, on the CPU."""
    generator = torch.Generator(device=device).manual_seed(seed)
    parts = []
    for first in range(0, len(scenes), _SCENES):
        points, distance, seen = sample_points(scenes[first : first + _SCENES].to(device), count, generator)
        parts.append((points.half().cpu(), distance.half().cpu(), seen.half().cpu()))
    points, distance, seen = (torch.cat(p) for p in zip(*parts))
    same = {name: getattr(scenes, name) for name in ("rows", "colors", "is_main", "family", "color", "pattern", "period", "phase")}
    return Objects(**same, points=points, distance=distance, seen=seen)


def load_objects(folder: Path, device: torch.device | str = "cpu", limit: int | None = None) -> Objects:
    """All shards of `folder`."""
    shards = sorted(folder.glob("shard-*.safetensors"))
    if not shards:
        raise SystemExit(f"no objects in {folder}; run: python -m tabletop.shap_e.objects --output {folder.parent}")
    parts = [load_file(shard) for shard in shards]
    return Objects(**{f.name: torch.cat([p[f.name] for p in parts])[:limit] for f in fields(Objects)}).to(device)


def _write(objects: Objects, plan: ShardPlan) -> None:
    plan.target.parent.mkdir(parents=True, exist_ok=True)
    part = plan.target.with_suffix(".part")
    save_file({f.name: getattr(objects, f.name).contiguous() for f in fields(objects)}, part)
    os.replace(part, plan.target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--heldout", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    args = parser.parse_args()
    device, started = default_device(), time.monotonic()
    plans = plan_shards(args.output, {"heldout": args.heldout, "train": args.train})
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        drawn = [pool.submit(sample_objects, plan.count, plan.seed, plan.split) for plan in plans]
        for plan, future in zip(plans, drawn):
            _write(objects_of(future.result(), plan.seed, device), plan)
            print(f"{plan.target.parent.name}: {plan.target.stem}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
