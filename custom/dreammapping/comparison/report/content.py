"""What every form of the report says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...evaluation.intervals import Interval
from ..plan import REPRESENTATIONS, Plan
from ..scores import COSTS, DISTANCE, Asset, Metric, Results

EXPLAINED = (
    "Values are means over prompts (each counts the same) and seeds, in brackets their 95 % intervals; a second line is the difference from {base} "
    "over the runs that both have (same prompt, same seed), with its interval. Costs are medians of one asset"
)


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    value: float
    text: str
    difference: str = ""
    verdict: str = ""
    """better or worse than the base, if the difference's interval excludes 0; else empty."""


@dataclass(frozen=True)
class Report:
    """A plan, what came of it, and where the strips are."""

    plan: Plan
    protocol: dict[str, Any]
    results: Results
    rows: list[dict[str, Any]]
    columns: Sequence[Metric]
    folder: Path
    """Of the records."""
    command: str
    """What makes the runs and this report."""

    @cached_property
    def workers(self) -> int:
        """Most runs at once."""
        return max((facts.get("workers", 1) for facts in self.results.facts.values()), default=1)

    @cached_property
    def devices(self) -> list[str]:
        return sorted({facts["device"] for facts in self.results.facts.values() if facts.get("device")})

    def explanation(self) -> str:
        """What the numbers mean."""
        text = EXPLAINED.format(base=self.plan.base)
        if self.workers > 1:
            text += f"; times are of up to {self.workers} runs at once that shared the device, so compare them with each other only"
        return f"{text}. Device: {', '.join(self.devices) or 'unknown'}."

    def counts(self) -> str:
        done, failed, missing = len(self.results.facts), len(self.results.failed), len(self.results.missing)
        return f"{done} of {done + failed + missing} runs finished, {failed} failed, {missing} were not run."

    def kinds(self) -> list[str]:
        return list(self.plan.representations)

    def name_of(self, kind: str) -> str:
        name = REPRESENTATIONS[kind]
        return name[0].upper() + name[1:]

    def table(self, kind: str) -> tuple[list[Metric], list[tuple[dict[str, Any], dict[str, Cell]]]]:
        """The columns of a representation that have any value, and its rows with their cells by column."""
        rows = [row for row in self.rows if row["representation"] == kind]
        networks = dict.fromkeys(name for row in rows for name in row["distances"])
        columns = [c for c in self.columns if any(c.key in row["values"] for row in rows)]
        columns += [Metric(DISTANCE.format(n), f"distance from the teacher ({n})", better=-1, digits=4 if n == "judge" else 2) for n in networks]
        columns += [c for c in COSTS if any(c.key in row["costs"] for row in rows)]
        return columns, [(row, {c.key: cell for c in columns if (cell := cell_of(row, c)) is not None}) for row in rows]

    def strips(self, kind: str) -> dict[str, dict[str, Asset]]:
        """Prompt -> method -> the asset of the first seed."""
        found: dict[str, dict[str, Asset]] = {}
        for asset in sorted(self.results.assets, key=lambda asset: self.plan.seeds.index(asset.seed)):
            if asset.representation == kind:
                found.setdefault(asset.prompt, {}).setdefault(asset.method, asset)
        return {prompt: found[prompt] for prompt in self.plan.prompts if prompt in found}


def cell_of(row: dict[str, Any], column: Metric) -> Cell | None:
    """The cell of a row; None where nothing is known."""
    digits, scale = column.digits, column.scale
    if column.key in row["costs"]:
        value = scale * row["costs"][column.key]
        return Cell(value, f"{value:,.{digits}f}")
    distances = {DISTANCE.format(name): value for name, value in row["distances"].items()}
    found: Interval | None = row["values"].get(column.key, distances.get(column.key))
    if found is None:
        return None
    difference: Interval | None = row["differences"].get(column.key)
    if difference is None:
        return Cell(scale * found.value, found.as_text(digits, scale))
    text, verdict = difference.as_text(digits, scale), ""
    if difference.value >= 0:
        text = f"+{text}"
    if difference.excludes_zero and column.better:
        verdict = "better" if difference.value * column.better > 0 else "worse"
    return Cell(scale * found.value, found.as_text(digits, scale), text, verdict)
