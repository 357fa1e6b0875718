"""Render the training pictures: `python -m tabletop.make_data --output build/tabletop`.

Three sets, disjoint by seed: `train` for the teacher, `judge` for the judge, `heldout` (combinations of family, color and pattern that neither
saw) for measuring. Shards of pictures and labels land in one folder each; a run that was stopped goes on with the shards that are missing.
Every shard depends on (seed, shard number) alone. Scenes are drawn in worker processes while the renderer compiles and works.
"""
from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .cameras import border_distance
from .render import render
from .training import default_device
from .world import Labels, Scenes, sample_labels, sample_scenes

SHARD = 5_120
"""Pictures in a file; a multiple of the renderer's compiled batch."""
SETS = {"train": (1, "train"), "judge": (2, "train"), "heldout": (9, "heldout")}
"""Seed and label split of each set."""
VIEW_MARGIN = 8.0
"""Degrees. Closer to a border between views nobody can tell the label, so such pictures don't count when views are judged."""


@dataclass
class Pictures:
    """Pictures with their labels. N pictures of H x W pixels."""

    images: Tensor  # [N, 3, H, W] uint8
    labels: Labels  # family, color, pattern: [N] int64
    views: Tensor   # [N] int64
    clear_views: Tensor  # [N] int64, -1 where the camera is within VIEW_MARGIN degrees of the border to another view


def sample_shard(count: int, seed: int, split: str) -> tuple[Scenes, Tensor]:
    """Scenes of one shard on the CPU, and which of their views are clear (else -1)."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(sample_labels(count, generator, split=split), generator)
    clear = border_distance(scenes.azimuth, scenes.elevation) >= VIEW_MARGIN
    return scenes, torch.where(clear, scenes.view, -1)


def render_shard(scenes: Scenes, clear_view: Tensor, *, size: int, device: torch.device, compile: bool) -> dict[str, Tensor]:
    """Pictures and labels of one shard, on the CPU."""
    images = render(scenes.to(device), size=size, compile=compile).contiguous().cpu()
    return {
        "images": images, "family": scenes.family, "color": scenes.color, "pattern": scenes.pattern, "view": scenes.view,
        "clear_view": clear_view,
    }


def load_pictures(folder: Path, device: torch.device | str = "cpu", limit: int | None = None) -> Pictures:
    """All shards of `folder`, pictures on `device`, labels on the CPU."""
    shards = sorted(folder.glob("shard-*.safetensors"))
    if not shards:
        raise SystemExit(f"no pictures in {folder}; run: python -m tabletop.make_data --output {folder.parent}")
    parts, total = [], 0
    for shard in shards:
        tensors = load_file(shard)
        tensors["images"] = tensors["images"].to(device)
        parts.append(tensors)
        total += len(tensors["view"])
        if limit is not None and total >= limit:
            break
    joined = {key: torch.cat([p[key] for p in parts])[:limit] for key in parts[0]}
    return Pictures(joined["images"], Labels(joined["family"], joined["color"], joined["pattern"]), joined["view"], joined["clear_view"])


@dataclass(frozen=True)
class ShardPlan:
    """One shard that is still to be made."""

    target: Path
    count: int
    seed: int
    split: str


def plan_shards(folder: Path, counts: dict[str, int]) -> list[ShardPlan]:
    """The missing shards of all sets. The seeds of different sets never meet."""
    plans = []
    for name, count in counts.items():
        first_seed, split = SETS[name]
        for index, first in enumerate(range(0, count, SHARD)):
            target = folder / name / f"shard-{index:04d}.safetensors"
            if not target.exists():
                plans.append(ShardPlan(target, min(SHARD, count - first), first_seed * 100_003 + index, split))
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=200_000)
    parser.add_argument("--judge", type=int, default=150_000)
    parser.add_argument("--heldout", type=int, default=5_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    device, started = default_device(), time.monotonic()
    compile = device.type == "cuda" and not args.no_compile
    plans = plan_shards(args.output, {"heldout": args.heldout, "judge": args.judge, "train": args.train})
    made = 0
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        drawn = [pool.submit(sample_shard, plan.count, plan.seed, plan.split) for plan in plans]
        for plan, future in zip(plans, drawn):
            shard = render_shard(*future.result(), size=args.size, device=device, compile=compile)
            plan.target.parent.mkdir(parents=True, exist_ok=True)
            part = plan.target.with_suffix(".part")
            save_file(shard, part)
            os.replace(part, plan.target)
            made += plan.count
            print(f"{plan.target.parent.name}: {made} pictures, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
