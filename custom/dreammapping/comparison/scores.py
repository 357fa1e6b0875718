"""What the records say: scores of every asset, and of every method with intervals and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.clip_score import clip_scores
from ..evaluation.fid import Distances
from ..evaluation.intervals import Interval, mean_interval, paired_interval, share_interval
from ..evaluation.janus import is_janus, share_of_right_views
from ..evaluation.judge import Judge
from ..evaluation.picture_statistics import NAMES as STATISTICS
from .look import Look
from .plan import Plan, Run
from .prompts import words_of
from .records import read_arrays
from .runner import read_record

RECOGNIZED = 0.5
"""Share of the views in which the judge must see the right family for its answers on the front to mean something."""
FID_LENGTH = 512
"""Longer features (Inception's 2,048) would take hours to draw from, so their distance has no interval."""
DISTANCE = "distance.{}"
"""Key of the distance's column, by the network's name."""
Texts = dict[tuple[str, str], torch.Tensor]
"""Network and prompt -> the text's features."""
TEACHER = "the teacher's samples"
"""Name of the row beside the methods, if there are samples."""


@dataclass(frozen=True)
class Metric:
    """One column."""

    key: str
    title: str
    unit: str = ""
    better: int = 0
    """1: the more the better, -1: the less, 0: neither."""
    rate: bool = False
    """Values are 0 or 1."""
    scale: float = 1.0
    """From the value to what is shown."""
    range: tuple[float, float] = (-math.inf, math.inf)
    """Of all values that there can be."""
    digits: int = 1

    @property
    def heading(self) -> str:
        """Of its column."""
        return f"{self.title} (%)" if self.unit == "%" else self.title


@dataclass(frozen=True)
class Asset:
    """One object, or the pictures of one prompt in one run."""

    representation: str
    method: str
    prompt: str
    seed: int
    name: str
    """Of the run."""
    values: dict[str, float]
    cost: dict[str, float]
    features: dict[str, np.ndarray] = field(repr=False, default_factory=dict)
    place: tuple[int, int] = (0, 1)
    """Which part of the run's strip shows it: its number, of how many."""

    @property
    def pair(self) -> tuple[str, int]:
        return self.prompt, self.seed


@dataclass(frozen=True)
class Results:
    """All that is known about a plan's runs."""

    assets: list[Asset]
    failed: dict[str, str]
    missing: list[str]
    facts: dict[str, dict[str, Any]]
    """Of finished runs, by name."""


METRICS = (
    Metric("family", "family right", "%", 1, scale=100, range=(0, 1)),
    Metric("color", "color right", "%", 1, scale=100, range=(0, 1)),
    Metric("pattern", "pattern right", "%", 1, scale=100, range=(0, 1)),
    Metric("side", "side right", "%", 1, scale=100, range=(0, 1)),
    Metric("janus", "Janus rate", "%", -1, rate=True, scale=100),
    *(Metric(f"statistics.{name}", name, digits=2, range=(0, math.inf)) for name in STATISTICS),
)
COSTS = (
    Metric("seconds", "training, s", "s", -1),
    Metric("unet_forwards", "U-Net forwards", "", -1, digits=0),
    Metric("unet_backwards", "U-Net backwards", "", -1, digits=0),
    Metric("peak_gpu_memory_bytes", "GPU memory, GiB", "GiB", -1, scale=2**-30, digits=2),
    Metric("primitives", "Gaussians", digits=0),
)


def metrics(look: Look) -> list[Metric]:
    """The columns: the protocol's CLIP scores, then METRICS."""
    return [*(Metric(f"clip.{name}", f"CLIP score ({name})", better=1) for name in look.protocol.clip), *METRICS]


# ---- of assets ----


def collect(output: Path, runs: Sequence[Run], look: Look) -> Results:
    """Read the records of `runs` below `output` and ask the networks about them."""
    assets, failed, missing, facts = [], {}, [], {}
    texts: Texts = {}
    for run in runs:
        known = read_record(output, run.job)
        if known is None:
            missing.append(run.job.name)
        elif "failure" in known:
            failed[run.job.name] = known["failure"]
        else:
            facts[run.job.name] = known
            assets += _assets(run, known, read_arrays(output, run.job), look, texts)
    return Results(assets, failed, missing, facts)


def _assets(run: Run, facts: dict[str, Any], arrays: dict[str, np.ndarray], look: Look, texts: Texts) -> list[Asset]:
    count = len(run.prompts)
    cost = {name: facts[name] for name in ("peak_gpu_memory_bytes", "primitives") if facts.get(name) is not None}
    shared = {"seconds": "training_seconds", "unet_forwards": "unet_forwards", "unet_backwards": "unet_backwards"}
    pictures = count * (facts["particles"] if run.representation == "2d" else 1)
    cost |= {name: facts[key] / pictures for name, key in shared.items() if facts.get(key) is not None}
    found = []
    for number, prompt in enumerate(run.prompts):
        part = {key: values[number * len(values) // count : (number + 1) * len(values) // count] for key, values in arrays.items()}
        features = {key.removeprefix("features."): values for key, values in part.items() if key.startswith("features.")}
        values = {key: float(rows.mean()) for key, rows in part.items() if key.startswith("statistics.")}
        values |= asked(look, features, prompt, run.representation, texts)
        found.append(Asset(run.representation, run.method, prompt, run.seed, run.job.name, values, cost, features, (number, count)))
    return found


def asked(look: Look, features: dict[str, np.ndarray], prompt: str, kind: str, texts: Texts) -> dict[str, float]:
    """CLIP scores and the judge's answers, from the features [V, D] of one asset's views by network. `texts` keeps what was embedded."""
    values: dict[str, float] = {}
    seen = {name: torch.from_numpy(rows).float() for name, rows in features.items()}
    for name in look.protocol.clip:
        if (name, prompt) not in texts:
            texts[name, prompt] = look.networks[name].text_features([look.text(prompt)])[0]
        values[f"clip.{name}"] = clip_scores(seen[name], texts[name, prompt]).mean().item()
    if look.protocol.judge:
        judge = look.networks[look.protocol.judge].judge
        if (words := words_of(prompt, judge.families, judge.colors, judge.patterns)) is not None:
            values |= _answers(judge, seen[look.protocol.judge], words, kind)
    return values


def _answers(judge: Judge, seen: torch.Tensor, words: tuple[str, str, str], kind: str) -> dict[str, float]:
    names = {"family": judge.families, "color": judge.colors, "pattern": judge.patterns}
    truth = {key: known.index(word) for (key, known), word in zip(names.items(), words)}
    odds = {key: rows.cpu() for key, rows in judge.odds_of(seen, truth["family"]).items()}
    values = {key: (odds[key].argmax(1) == index).float().mean().item() for key, index in truth.items()}
    if kind != "2d":
        around = odds["view"], torch.arange(len(seen)) * (360.0 / len(seen)), judge.views
        if not math.isnan(side := share_of_right_views(*around)):
            values["side"] = side
        if values["family"] >= RECOGNIZED:
            values["janus"] = float(is_janus(*around))
    return values


# ---- of methods ----


def groups_of(assets: Sequence[Asset], value: Callable[[Asset], float | None]) -> dict[tuple[str, int], float]:
    """Values by prompt and seed, where there are any."""
    return {asset.pair: number for asset in assets if (number := value(asset)) is not None}


def interval(values: dict[tuple[str, int], float], rate: bool = False) -> Interval | None:
    """Of the mean over prompts and seeds; None without values."""
    groups: dict[str, list[float]] = {}
    for (prompt, _), value in values.items():
        groups.setdefault(prompt, []).append(value)
    if not groups:
        return None
    return share_interval([[v > 0.5 for v in group] for group in groups.values()]) if rate else mean_interval(list(groups.values()))


def summarize(plan: Plan, results: Results, look: Look, teacher: Sequence[Asset] = ()) -> list[dict[str, Any]]:
    """A row for each representation and method: counts, every metric with its interval and its paired difference from the base, costs, distances.

    Rows come in the plan's order; a method without finished runs has its counts alone. `teacher`: `teacher_assets`, for distances and a row.
    """
    rows, columns, name = [], metrics(look), look.protocol.fid
    near = Distances({sample.prompt: sample.features[name] for sample in teacher if name in sample.features})
    for kind in plan.representations:
        assets = {m: [a for a in results.assets if (a.representation, a.method) == (kind, m)] for m in plan.methods}
        pictures = {method: _pictures(own, name, near.reference) for method, own in assets.items()}
        for method, own in assets.items():
            base = None if method == plan.base else plan.base
            row = _summary(kind, method, own, [] if base is None else assets[base], columns)
            row["distances"] = {} if (found := distance(near, pictures[method])) is None else {name: found}
            if base is not None and (found := distance(near, pictures[method], pictures[base])) is not None:
                row["differences"][DISTANCE.format(name)] = found
            rows.append(row)
        if teacher:
            rows.append(_summary(kind, TEACHER, teacher, [], columns) | {"distances": {}})
    return rows


def _summary(kind: str, method: str, own: Sequence[Asset], base: Sequence[Asset], columns: Sequence[Metric]) -> dict[str, Any]:
    row: dict[str, Any] = {"representation": kind, "method": method, "assets": len(own), "values": {}, "differences": {}, "costs": {}}
    for metric in columns:
        mine, theirs = (groups_of(assets, lambda a, m=metric: a.values.get(m.key)) for assets in (own, base))
        if (found := interval(mine, metric.rate)) is not None:
            row["values"][metric.key] = found.within(*metric.range)
            if (difference := paired_interval(mine, theirs)) is not None:
                row["differences"][metric.key] = difference
    for metric in COSTS:
        if known := [a.cost[metric.key] for a in own if metric.key in a.cost]:
            row["costs"][metric.key] = float(np.median(known))
    return row


def _pictures(assets: Sequence[Asset], name: str | None, prompts: Container[str]) -> dict[str, np.ndarray]:
    """Prompt, if it is one of `prompts` -> the features of all views of all its assets, by the network `name`."""
    found: dict[str, list[np.ndarray]] = {}
    for asset in assets:
        if name in asset.features and asset.prompt in prompts:
            found.setdefault(asset.prompt, []).append(asset.features[name])
    return {prompt: np.concatenate(views) for prompt, views in found.items()}


def distance(near: Distances, pictures: dict[str, np.ndarray], base: dict[str, np.ndarray] | None = None) -> Interval | None:
    """Frechet distance of the pictures from the teacher's samples for the same prompts, or how much it differs from that of `base`; None where
    there is nothing to compare. Of long features and of one prompt it has no interval."""
    prompts = [prompt for prompt in pictures if base is None or prompt in base]
    if not prompts:
        return None
    if pictures[prompts[0]].shape[1] > FID_LENGTH:
        value = near.of(pictures, prompts) - (0.0 if base is None else near.of(base, prompts))
        return Interval(value, math.nan, math.nan)
    if base is not None:
        return near.interval(pictures, minus=base)
    return near.interval(pictures).within(0, math.inf)
