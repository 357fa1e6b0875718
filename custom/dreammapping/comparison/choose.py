"""From a plan with variants (learning rates, say) to each loss's best one, for other plans to take by `choices: FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import DreamMappingError, suggest
from ..files import write_atomic
from .plan import Plan

HEAD = "# Each loss's best variant of {title!r} by {metric}, written by python -m custom.dreammapping.comparison --choose. Do not edit.\n"


def choose(plan: Plan, rows: list[dict[str, Any]], metric: str) -> dict[str, dict[str, list[str]]]:
    """Overrides by representation and loss: of the variant with the largest mean of `metric` among those with the most finished assets.

    Of equal ones the first is taken. Raises DreamMappingError if a loss has no value of the metric.
    """
    rows = [row for row in rows if row["method"] in plan.methods]  # the teacher's samples have one, too
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
            best = max((row for row in able if row["assets"] == most), key=lambda row: row["values"][metric].value)
            method = plan.methods[best["method"]]
            chosen.setdefault(kind, {})[loss] = [*method.overrides, *method.of.get(kind, [])]
    return chosen


def write_choices(path: Path, plan: Plan, rows: list[dict[str, Any]], metric: str) -> None:
    """Write what was chosen; representations that the file has and the plan has not stay."""
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        known = {}
    known |= choose(plan, rows, metric)
    text = HEAD.format(title=plan.title, metric=metric) + yaml.safe_dump(known, sort_keys=True, width=1000)
    write_atomic(path, text.encode())
