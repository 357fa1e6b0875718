"""Measure an embedded Shap-E: `python -m tabletop.shap_e.evaluate --output build/tabletop/shap-e-report`.

It makes an object of each of some different prompts whose combination of family, color and pattern no training object had, puts points on it as a run with
`init.type: shap-e` does, and shows the points from four sides to the judge. The points are also compared with true objects of the same labels: the
Chamfer distance and the difference in color to the nearest one of several, since sizes and proportions are not in the prompt. What one true object
misses of the others is given beside it. Meshes are kept, so that the command can be stopped and started again; a contact sheet and a JSON file are written.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..cameras import directions
from ..captions import plain_prompt
from ..evaluate_teacher import contact_sheet
from ..sdf import scene_distance
from ..training import default_device
from ..world import Labels, sample_labels, sample_scenes
from .objects import average_color, random_points, to_surface

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "custom"))  # as the extension is imported everywhere else: a second name for it would register its classes twice

from dreammapping.evaluation.judge import Judge  # noqa: E402
from dreammapping.gaussians.model import GaussianModel  # noqa: E402
from dreammapping.initialization.mesh import points_on_mesh  # noqa: E402
from dreammapping.initialization.points import ColoredPoints, normalize  # noqa: E402
from dreammapping.initialization.shap_e import ShapESettings, shap_e_mesh  # noqa: E402
from dreammapping.rasterization import rasterize  # noqa: E402
from dreammapping.renderer.cameras import intrinsics, world_to_camera  # noqa: E402

POINTS = 50_000
COMPARED = 2_048
"""Points of each cloud that are compared."""
TRUE_OBJECTS = 8
"""Of each prompt's labels."""
RADIUS = 0.5
"""To which all clouds are scaled, as in vdm-gs.yaml; Chamfer distances are in these units."""
SIDES, ELEVATION, DISTANCE, FOVY, SIZE = (0.0, 90.0, 180.0, 270.0), 20.0, 2.0, 40.0, 128


def different_labels(count: int, seed: int) -> Labels:
    """Labels [count] of unseen combinations, no two of them the same. Raises ValueError if there are not so many."""
    drawn = sample_labels(30 * count, torch.Generator().manual_seed(seed), split="heldout")
    rows = list(zip(drawn.family.tolist(), drawn.color.tolist(), drawn.pattern.tolist()))
    first = [rows.index(row) for row in dict.fromkeys(rows)][:count]
    if len(first) < count:
        raise ValueError(f"only {len(first)} combinations came up that no training object has")
    return drawn[torch.tensor(first)]


def true_clouds(labels: Labels, seed: int, device: torch.device) -> list[ColoredPoints]:
    """Surface points of TRUE_OBJECTS objects with one prompt's labels [1]: random ones in a thin shell about the surface, moved onto it, so about
    uniform over its area."""
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(Labels(*(v.expand(TRUE_OBJECTS) for v in (labels.family, labels.color, labels.pattern))), generator).to(device)
    clouds = []
    for i in range(TRUE_OBJECTS):
        points = random_points(40 * COMPARED, 1, generator, torch.device("cpu"))[0].to(device)
        rows = scenes.rows[i].expand(len(points), -1, -1)
        shell = scene_distance(rows, points).abs().argsort()[:COMPARED]
        onto = to_surface(rows[:COMPARED], points[shell])
        colors = average_color(scenes, torch.full((COMPARED,), i, device=device), onto)
        clouds.append(normalize(ColoredPoints(onto.cpu(), colors.cpu()), RADIUS))
    return clouds


def difference(a: ColoredPoints, b: ColoredPoints) -> dict[str, float]:
    """Chamfer distance (mean of the two mean distances to the other's nearest point), the mean absolute difference of the colors there, and that of
    the clouds' mean colors."""
    from_a, near_a = cKDTree(b.points.numpy()).query(a.points.numpy())
    from_b, near_b = cKDTree(a.points.numpy()).query(b.points.numpy())
    there = (a.colors - b.colors[near_a]).abs().mean() + (b.colors - a.colors[near_b]).abs().mean()
    return {
        "chamfer": float(from_a.mean() + from_b.mean()) / 2, "color": there.item() / 2, "mean_color": (a.colors.mean(0) - b.colors.mean(0)).abs().mean().item(),
    }


def to_nearest(cloud: ColoredPoints, others: list[ColoredPoints]) -> dict[str, float]:
    """The difference to the one with the smallest Chamfer distance."""
    return min((difference(cloud, other) for other in others), key=lambda d: d["chamfer"])


def pictures(cloud: ColoredPoints) -> Tensor:
    """The cloud as opaque round dots before white, from each of SIDES: [V, SIZE, SIZE, 3] in [0, 1]."""
    azimuth = torch.tensor(SIDES)
    backward = directions(azimuth, torch.full_like(azimuth, ELEVATION))
    right = directions(azimuth + 90.0, torch.zeros_like(azimuth))
    c2w = torch.eye(4).repeat(len(azimuth), 1, 1)
    c2w[:, :3] = torch.stack([right, torch.linalg.cross(backward, right), backward, DISTANCE * backward], dim=-1)
    Ks = intrinsics(torch.deg2rad(torch.full_like(azimuth, FOVY)), SIZE, SIZE)
    dots = GaussianModel.from_points(cloud, opacity=0.99).rasterizer_inputs()
    with torch.no_grad():
        return rasterize(**dots, viewmats=world_to_camera(c2w), Ks=Ks, width=SIZE, height=SIZE, background=torch.ones(len(azimuth), 3)).rgb.clamp(0, 1)


def measure(prompt: str, labels: Labels, settings: ShapESettings, judge: Judge, device: torch.device) -> tuple[dict, Tensor]:
    """What is found out about one prompt, and its pictures."""
    started = time.perf_counter()
    mesh = shap_e_mesh(prompt, settings, device)
    cloud = normalize(points_on_mesh(mesh, POINTS, torch.Generator().manual_seed(settings.seed)), RADIUS)
    seconds = time.perf_counter() - started
    shown, family = pictures(cloud), int(labels.family)
    odds = judge.odds(shown, family)
    truth = {"family": family, "color": int(labels.color), "pattern": int(labels.pattern)}
    known = {name: value for name, value in truth.items() if value >= 0}
    few = ColoredPoints(cloud.points[:COMPARED], cloud.colors[:COMPARED])  # the points come in no order
    true = true_clouds(labels, settings.seed, device)
    return {
        "prompt": prompt,
        "seconds": seconds,
        "right": {name: int(odds[name].mean(0).argmax()) == value for name, value in known.items()},
        "share_of_pictures": {name: (odds[name].argmax(1) == value).float().mean().item() for name, value in known.items()},
        "seen": judge.families[int(odds["family"].mean(0).argmax())],
        "to_true": to_nearest(few, true),
        "true_to_true": to_nearest(true[0], true[1:]),
    }, shown


def summarize(rows: list[dict]) -> dict:
    """Means over the prompts."""
    def mean(group: str) -> dict[str, float]:
        names = sorted({name for row in rows for name in row[group]})
        return {name: float(np.mean([row[group][name] for row in rows if name in row[group]])) for name in names}

    groups = {group: mean(group) for group in ("right", "share_of_pictures", "to_true", "true_to_true")}
    return {"prompts": len(rows), **groups, "seconds": {"median": float(np.median([r["seconds"] for r in rows])), "most": max(r["seconds"] for r in rows)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="load/embedded-shap-e")
    parser.add_argument("--judge", type=Path, default=ROOT / "load" / "embedded-judge")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--grid-size", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    device, judge, rows, shown = default_device(), Judge(args.judge), [], []
    labels = different_labels(args.prompts, args.seed)
    for i in range(args.prompts):
        one = labels[i : i + 1]
        settings = ShapESettings(
            model=args.model, steps=args.steps, guidance_scale=args.scale, grid_size=args.grid_size, seed=args.seed + i, cache_dir=str(args.output / "meshes"),
        )
        row, views = measure(plain_prompt(int(one.family), int(one.color), int(one.pattern)), one, settings, judge, device)
        rows.append(row)
        shown.append(views)
        print(f"{row['prompt']:32s} sees {row['seen']:16s} chamfer {row['to_true']['chamfer']:.4f}  {row['seconds']:.1f} s", flush=True)
    chosen = {"model": args.model, "steps": args.steps, "scale": args.scale, "grid_size": args.grid_size, "seed": args.seed, "points": POINTS}
    report = {"settings": chosen, "mean": summarize(rows), "rows": rows}
    (args.output / "shap_e.json").write_text(json.dumps(report, indent=1))
    small = torch.nn.functional.interpolate(torch.cat(shown).permute(0, 3, 1, 2), (64, 64), mode="area")
    contact_sheet(small.mul(255).round().byte(), 5 * len(SIDES)).save(args.output / "contact_sheet.png", optimize=True)
    print(json.dumps({"settings": chosen, **report["mean"]}, indent=1))


if __name__ == "__main__":
    main()
