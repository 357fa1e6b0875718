"""From a plan with variants (learning rates, say) to each loss's best one, for other plans to take by `choices: FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import DreamMappingError, suggest
from ..evaluation.intervals import paired_interval
from ..files import write_atomic
from .plan import Plan
from .scores import Asset, groups_of

HEAD = """\
# Each loss's best variant of {title!r} by {metric}; of those that cannot be told from it, the nearest to the teacher's samples; where that cannot be told either, the first.
# Written by python -m custom.dreammapping.comparison --choose. Do not edit.
"""
Row = dict[str, Any]


def choose(plan: Plan, rows: Sequence[Row], assets: Sequence[Asset], metric: str) -> dict[str, dict[str, list[str]]]:
    """Overrides by representation and loss, of the variant that `best_of` names. Only those with the most finished assets take part.

    Raises DreamMappingError if a loss has no value of the metric.
    """
    rows = [row for row in rows if row["method"] in plan.methods]  # not the teacher's samples
    known = {key for row in rows for key in row["values"]}
    if metric not in known:
        raise DreamMappingError(f"no run has a value of {metric!r}, by which to choose; {suggest(metric, known)}")
    chosen: dict[str, dict[str, list[str]]] = {}
    for kind in plan.representations:
        for loss in dict.fromkeys(method.loss for method in plan.methods.values()):
            able = [r for r in rows if r["representation"] == kind and plan.methods[r["method"]].loss == loss and metric in r["values"]]
            if not able:
                raise DreamMappingError(f"no run of {loss} ({kind}) has finished with a value of {metric}; make more runs before choosing")
            most = max(row["assets"] for row in able)
            method = plan.methods[best_of([row for row in able if row["assets"] == most], assets, metric)["method"]]
            chosen.setdefault(kind, {})[loss] = [*method.overrides, *method.of.get(kind, [])]
    return chosen


def best_of(rows: Sequence[Row], assets: Sequence[Asset], metric: str) -> Row:
    """The first row, a loss as it is, unless another has a larger mean of `metric`, or is nearer to the teacher's samples at a mean that is no smaller, by more
    than chance explains.

    A score alone likes what is too strong, since saturated pictures keep it for long; a distance alone, what fills as much of the picture as the samples do.
    Without distances the row with the largest mean is taken.
    """
    best = max(rows, key=lambda row: row["values"][metric].value)
    values = {
        row["method"]: groups_of([a for a in assets if (a.representation, a.method) == (row["representation"], row["method"])], lambda a: a.values.get(metric))
        for row in rows
    }
    pairs = [(row, paired_interval(values[best["method"]], values[row["method"]])) for row in rows]
    equal = [row for row, difference in pairs if row is best or (difference is not None and difference.low <= 0.0)]
    if not all(row["distances"] for row in equal):
        return best
    distances = [next(iter(row["distances"].values())) for row in equal]
    nearest = min(distances, key=lambda distance: distance.value)
    return next(row for row, distance in zip(equal, distances) if distance is nearest or distance.low <= nearest.high)


def write_choices(path: Path, plan: Plan, rows: Sequence[Row], assets: Sequence[Asset], metric: str) -> None:
    """Write what was chosen; representations that the file has and the plan has not stay."""
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        known = {}
    known |= choose(plan, rows, assets, metric)
    text = HEAD.format(title=plan.title, metric=metric) + yaml.safe_dump(known, sort_keys=True, width=1000)
    write_atomic(path, text.encode())
