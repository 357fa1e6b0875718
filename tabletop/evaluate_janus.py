"""How well does the judge tell a Janus? `python -m tabletop.evaluate_janus --objects 2 --output build/tabletop/janus`.

Objects of the world are drawn from 24 sides with the embedded preset's test camera and shown to the judge. From the same pictures come objects that
are no Janus (as they are, and turned) and objects that are: with the front on the back, too, or with up to four fronts all around. The
report (janus.json) says how often `dreammapping.evaluation.janus` is wrong about them. What the judge saw is kept (seen.npz), so that another rule
can be tried in a second; about ten seconds an object on one CPU core.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "custom"))  # as the extension is imported everywhere else: a second name for it would register its classes twice

from dreammapping.evaluation.janus import is_janus, share_of_right_views  # noqa: E402
from dreammapping.evaluation.judge import Judge  # noqa: E402

from .families import FAMILIES
from .render import render
from .training import default_device
from .world import Labels, Scenes, sample_labels, sample_scenes

VIEWS_AROUND = 24
CAMERA = {"elevation": 20.0, "distance": 2.3, "fovy": 40.0}
"""The embedded preset's, when it looks at a result."""


def fold(azimuth: Tensor, fronts: int) -> Tensor:
    """Azimuth of the true object that an object with so many equal fronts shows at `azimuth`, degrees in [-180, 180]."""
    part = 360.0 / fronts
    return torch.remainder(azimuth + part / 2, part) - part / 2


def mirrored(azimuth: Tensor) -> Tensor:
    """The same for an object whose back half is the mirror image of its front half."""
    azimuth = fold(azimuth, 1)
    return torch.where(azimuth.abs() > 90.0, torch.sign(azimuth) * 180.0 - azimuth, azimuth)


def pasted(azimuth: Tensor, width: float) -> Tensor:
    """The same for an object that is true but for a front over its back, `width` degrees to each side."""
    turned = fold(azimuth - 180.0, 1)
    return torch.where(turned.abs() <= width, turned, azimuth)


TRUE: dict[str, Callable[[Tensor], Tensor]] = {"as it is": lambda a: a, "turned by 75": lambda a: a + 75.0, "turned by 180": lambda a: a + 180.0}
FALSE: dict[str, Callable[[Tensor], Tensor]] = {
    "front mirrored to the back": mirrored,
    "front over the back, 45 to each side": lambda a: pasted(a, 45.0),
    "front over the back, 15 to each side": lambda a: pasted(a, 15.0),
    "two fronts": lambda a: fold(a, 2),
    "three fronts": lambda a: fold(a, 3),
    "four fronts": lambda a: fold(a, 4),
}


def azimuths() -> Tensor:
    return torch.arange(VIEWS_AROUND) * (360.0 / VIEWS_AROUND)


def scenes_of_all_families(objects: int, seed: int) -> Scenes:
    """So many objects of each family, in colors and patterns as they come, before white, in light that does not follow the camera."""
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_labels(40 * objects * len(FAMILIES), generator, split="all")
    chosen = torch.cat([(drawn.family == family).nonzero()[:objects, 0] for family in range(len(FAMILIES))])
    labels = Labels(drawn.family[chosen], drawn.color[chosen], drawn.pattern[chosen])
    scenes = sample_scenes(labels, generator, azimuth=0.0, background=1.0, **CAMERA)
    return scenes.replace(center=torch.zeros_like(scenes.center), floor_shadow=torch.zeros_like(scenes.floor_shadow))


def look_around(scenes: Scenes, judge: Judge, device: torch.device, supersample: int = 2) -> Tensor:
    """The judge's unit vectors [N, V, D]."""
    seen = []
    for azimuth in azimuths():
        turned = scenes.replace(azimuth=azimuth.expand(len(scenes))).to(device)
        pictures = render(turned, supersample=supersample, compile=device.type == "cuda")
        seen.append(torch.cat([judge.embed_images(part.permute(0, 2, 3, 1).float() / 255).cpu() for part in pictures.split(64)]))
        print(f"{azimuth:5.0f} degrees", flush=True)
    return torch.stack(seen, dim=1)


def verdicts(odds: Tensor, judge: Judge) -> dict[str, dict[str, float]]:
    """By kind of object: whether it is called a Janus (0 or 1), and the share of its views that are right. odds: [V, views] of a true object."""
    around, step = azimuths(), 360.0 / VIEWS_AROUND
    result = {}
    for name, shown in {**TRUE, **FALSE}.items():
        index = torch.remainder((shown(around) / step).round().long(), VIEWS_AROUND)
        result[name] = {
            "janus": float(is_janus(odds[index], around, judge.views)), "views": share_of_right_views(odds[index], around, judge.views),
        }  # fmt: skip
    return result


def summarize(seen: Tensor, family: Tensor, judge: Judge) -> dict:
    """Error rates over all objects, and the families in which there were errors. seen: [N, V, D]; family: [N]."""
    found = [verdicts(judge.odds_of(row, int(f))["view"].cpu(), judge) for row, f in zip(seen, family)]
    errors = {name: [v[name]["janus"] if name in TRUE else 1 - v[name]["janus"] for v in found] for name in {**TRUE, **FALSE}}
    return {
        "objects": len(found),
        "wrong": {name: float(np.mean(values)) for name, values in errors.items()},
        "false_positive_rate": float(np.mean([errors[name] for name in TRUE])),
        "false_negative_rate": float(np.mean([errors[name] for name in FALSE])),
        "share_of_right_views": {name: float(np.mean([v[name]["views"] for v in found])) for name in {**TRUE, **FALSE}},
        "wrong_families": {
            name: sorted({FAMILIES[int(f)] for f, wrong in zip(family, values) if wrong}) for name, values in errors.items() if any(values)
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=2, help="of each family")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--supersample", type=int, default=2, help="1 takes a quarter of the time and leaves jagged edges")
    parser.add_argument("--judge", type=Path, default=ROOT / "load" / "embedded-judge")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device, store = default_device(), args.output / "seen.npz"
    judge = Judge(args.judge, device)
    args.output.mkdir(parents=True, exist_ok=True)
    if not store.exists():
        scenes = scenes_of_all_families(args.objects, args.seed)
        np.savez(store, seen=look_around(scenes, judge, device, args.supersample).half().numpy(), family=scenes.family.numpy())
    with np.load(store) as kept:
        report = summarize(torch.from_numpy(kept["seen"]).float(), torch.from_numpy(kept["family"]), judge)
    (args.output / "janus.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
