"""Render the training pictures: `python -m tabletop.make_data --output build/tabletop/train --count 160000`.

Shards of pictures and labels land in the folder; a run that was stopped goes on with the shards that are missing. Every shard
depends on (seed, shard number) alone.
"""
from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .cameras import border_distance
from .render import render
from .training import default_device
from .world import Labels, sample_labels, sample_scenes

SHARD = 10_000
VIEW_MARGIN = 8.0
"""Degrees. Closer to a border between views nobody can tell the label, so such pictures don't count when views are judged."""


@dataclass
class Pictures:
    """Pictures with their labels. N pictures of H x W pixels."""

    images: Tensor  # [N, 3, H, W] uint8
    labels: Labels  # family, color, pattern: [N] int64
    views: Tensor   # [N] int64
    clear_views: Tensor  # [N] int64, -1 where the camera is within VIEW_MARGIN degrees of the border to another view


def render_shard(count: int, seed: int, split: str, *, size: int, device: torch.device, compile: bool) -> dict[str, Tensor]:
    """Pictures and labels of one shard, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    labels = sample_labels(count, generator, split=split)
    scenes = sample_scenes(labels, generator, device=device)
    images = render(scenes, size=size, compile=compile).contiguous().cpu()
    clear = border_distance(scenes.azimuth, scenes.elevation) >= VIEW_MARGIN
    return {
        "images": images, "family": labels.family.cpu(), "color": labels.color.cpu(), "pattern": labels.pattern.cpu(),
        "view": scenes.view.cpu(), "clear_view": torch.where(clear, scenes.view, -1).cpu(),
    }


def load_pictures(folder: Path, device: torch.device | str = "cpu", limit: int | None = None) -> Pictures:
    """All shards of `folder`, pictures on `device`, labels on the CPU."""
    shards = sorted(folder.glob("shard-*.safetensors"))
    if not shards:
        raise SystemExit(f"no pictures in {folder}; run: python -m tabletop.make_data --output {folder}")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=160_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=("train", "heldout", "all"), default="train")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    device, started = default_device(), time.monotonic()
    for index, first in enumerate(range(0, args.count, SHARD)):
        target = args.output / f"shard-{index:04d}.safetensors"
        if target.exists():
            continue
        count = min(SHARD, args.count - first)
        compile = device.type == "cuda" and not args.no_compile
        shard = render_shard(count, args.seed * 100_003 + index, args.split, size=args.size, device=device, compile=compile)
        save_file(shard, target.with_suffix(".part"))
        os.replace(target.with_suffix(".part"), target)
        print(f"{first + count}/{args.count} pictures, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
