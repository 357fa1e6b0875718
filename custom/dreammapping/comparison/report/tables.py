"""The report as Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from typing import Any

from ...evaluation.intervals import Interval
from .content import Report

COST_NAMES = ("seconds", "unet_forwards", "unet_backwards", "peak_gpu_memory_bytes", "primitives")


def as_markdown(report: Report) -> str:
    """Tables, then what failed and what is missing."""
    lines = [f"# {report.plan.title}", "", "```sh", report.command, "```", ""]
    if report.plan.about:
        lines += [report.plan.about.strip(), ""]
    lines += [report.counts(), "", report.explanation(), "", f"Protocol: {json.dumps(report.protocol)}"]
    for kind in report.kinds():
        columns, rows = report.table(kind)
        lines += ["", f"## {report.name_of(kind)}", ""]
        lines += _row(["method", "assets", *(c.heading for c in columns)])
        lines += _row(["---"] * (len(columns) + 2))
        for row, cells in rows:
            shown = [_joined(cells[c.key].text, cells[c.key].difference) if c.key in cells else "" for c in columns]
            lines += _row([row["method"], str(row["assets"]), *shown])
    if report.results.failed:
        lines += ["", f"## Failed: {len(report.results.failed)}", "", *(f"- {name}: {why}" for name, why in report.results.failed.items())]
    if report.results.missing:
        groups = Counter(".".join(name.split(".")[:2]) for name in report.results.missing)
        lines += ["", f"## Not run: {len(report.results.missing)}", "", ", ".join(f"{name} ({count})" for name, count in groups.items())]
    return "\n".join([*lines, ""])


def as_json(report: Report) -> str:
    """Everything but the features: plan, protocol, rows with intervals, and every asset's values as a row of `assets`, with `columns`."""
    columns, assets = _assets(report)
    content = {
        "title": report.plan.title, "command": report.command, "plan": _plain(report.plan), "protocol": report.protocol, "devices": report.devices, "workers": report.workers,
        "methods": report.rows, "failed": report.results.failed, "missing": report.results.missing, "columns": columns, "assets": [],
    }  # fmt: skip
    lines = ",\n".join(f"  {json.dumps(asset)}" for asset in assets)
    return json.dumps(_plain(content), indent=1).replace('"assets": []', f'"assets": [\n{lines}\n ]') + "\n"


def as_csv(report: Report) -> str:
    """A line for each asset: what it is, all values, all costs."""
    columns, assets = _assets(report)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(assets)
    return file.getvalue()


def _assets(report: Report) -> tuple[list[str], list[list[Any]]]:
    """What the columns are, and a row for each asset; None where it has no such value."""
    keys = sorted({key for asset in report.results.assets for key in asset.values})
    rows = []
    for a in report.results.assets:
        values = [a.values.get(key) for key in keys] + [a.cost.get(key) for key in COST_NAMES]
        rows.append([a.representation, a.method, a.prompt, a.seed, a.name, *(_rounded(v) for v in values)])
    return ["representation", "method", "prompt", "seed", "run", *keys, *COST_NAMES], rows


def _row(cells: list[str]) -> list[str]:
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"]


def _joined(text: str, difference: str) -> str:
    return f"{text}; {difference}" if difference else text


def _plain(value: Any) -> Any:
    """For JSON: intervals as [value, low, high], six digits, NaN as null."""
    if isinstance(value, Interval):
        return [_plain(number) for number in (value.value, value.low, value.high)]
    if hasattr(value, "__dataclass_fields__"):
        return _plain(value.__dict__)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return _rounded(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value
