"""Cost against quality, as one SVG."""

from __future__ import annotations

import io
from typing import Any

from ..scores import Metric
from .content import Report

COSTS = {"unet": "U-Net evaluations of one asset", "seconds": "seconds of training of one asset"}


def cost_against_quality(report: Report, kind: str) -> str | None:
    """An SVG of the first metric that is better when larger, over U-Net evaluations and over seconds; None without such numbers."""
    columns, rows = report.table(kind)
    metric = next((c for c in columns if c.better > 0), None)
    if metric is None:
        return None
    points = {name: [(row, cost) for row, _ in rows if metric.key in row["values"] and (cost := _cost(row, name))] for name in COSTS}
    points = {name: found for name, found in points.items() if found}
    return _draw(points, metric) if points else None


def _cost(row: dict[str, Any], name: str) -> float:
    costs = row["costs"]
    return costs.get("seconds", 0.0) if name == "seconds" else costs.get("unet_forwards", 0.0) + costs.get("unet_backwards", 0.0)


def _draw(points: dict[str, list[tuple[dict[str, Any], float]]], metric: Metric) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "comparison", "font.size": 8, "svg.fonttype": "none"}):  # the same numbers, the same bytes
        figure = Figure(figsize=(5.0 * len(points), 3.6), layout="constrained")
        for axes, (name, found) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items()):
            for row, cost in found:
                value = row["values"][metric.key]
                low, high = (max(0.0, abs(metric.scale * (end - value.value))) if end == end else 0.0 for end in (value.low, value.high))
                axes.errorbar(cost, metric.scale * value.value, [[low], [high]], fmt="o", markersize=4, linewidth=1)
                axes.annotate(row["method"], (cost, metric.scale * value.value), (4, 3), textcoords="offset points")
            if all(cost > 0 for _, cost in found):
                axes.set_xscale("log")
            axes.set_xlabel(COSTS[name])
            axes.set_ylabel(metric.title)
            axes.grid(alpha=0.3)
            axes.margins(x=0.2)  # room for names
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
