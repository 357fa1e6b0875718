"""Cost against quality, as one SVG."""

from __future__ import annotations

import io
from typing import Any

from ..scores import Metric
from .content import Report

FONT_SIZE = 8.0
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
    from matplotlib.ticker import LogLocator, NullFormatter

    with rc_context({"svg.hashsalt": "comparison", "font.size": FONT_SIZE, "svg.fonttype": "none"}):  # the same numbers, the same bytes
        figure = Figure(figsize=(5.4 * len(points), 4.4), layout="constrained")
        for axes, (name, found) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items()):
            for row, cost in found:
                value = row["values"][metric.key]
                low, high = (max(0.0, abs(metric.scale * (end - value.value))) if end == end else 0.0 for end in (value.low, value.high))
                axes.errorbar(cost, metric.scale * value.value, [[low], [high]], fmt="o", markersize=4, linewidth=1)
            if all(cost > 0 for _, cost in found):
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(COSTS[name])
            axes.set_ylabel(metric.title)
            axes.grid(alpha=0.3)
            axes.margins(x=0.2)  # room for names
            figure.draw_without_rendering()  # from here on it is known where a point is
            _name(axes, [(row["method"], (cost, metric.scale * row["values"][metric.key].value)) for row, cost in found])
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _name(axes: Any, points: list[tuple[str, tuple[float, float]]]) -> None:
    """Write each name beside its point, further up or down where another name or point is, then with a line to its own."""
    unit = 72.0 / axes.figure.dpi  # points of a pixel
    places = {name: unit * axes.transData.transform(point) for name, point in points}
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places.values()]
    for name, point in sorted(points, key=lambda entry: entry[1][1]):
        x, y = places[name]
        width, height = 0.65 * FONT_SIZE * len(name), 1.25 * FONT_SIZE

        def box(up: float) -> tuple[float, float, float, float]:
            return x + 5, y + up, x + 5 + width, y + up + height

        steps = [sign * height * number - height / 2 for number in range(40) for sign in (1, -1)]
        up = next((up for up in steps if not any(_meet(box(up), other) for other in taken)), steps[0])
        taken.append(box(up))
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2} if abs(up + height / 2) > height else None
        axes.annotate(name, point, (5, up), textcoords="offset points", verticalalignment="bottom", arrowprops=line)


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
