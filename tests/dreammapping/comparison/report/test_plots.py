"""Names in the plot of cost against quality."""

from __future__ import annotations

from itertools import combinations

from dreammapping.comparison.report.plots import FONT_SIZE, _name
from matplotlib import rc_context
from matplotlib.figure import Figure


def test_names_of_points_in_one_place_can_all_be_read_and_stay_near():
    points = [("vdm", (1.0, 2.0)), ("asynchronous", (1.0, 2.0)), ("sds", (1.0, 2.001)), ("vsd", (1.02, 2.0)), ("far", (3.0, 1.0))]
    with rc_context({"font.size": FONT_SIZE}):
        figure = Figure(figsize=(5, 4))
        axes = figure.subplots()
        axes.plot(*zip(*(point for _, point in points)), "o")
        figure.draw_without_rendering()
        _name(axes, points)
        figure.draw_without_rendering()
    boxes = {label.get_text(): super(type(label), label).get_window_extent() for label in axes.texts}  # of the text, without its line
    assert set(boxes) == {name for name, _ in points}
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    lines = {label.get_text(): label.arrow_patch is not None for label in axes.texts}
    assert not lines["far"] and any(lines.values())
    for name, point in points:
        x, y = axes.transData.transform(point)
        assert abs(boxes[name].x0 - x) < 20 and abs(boxes[name].y0 - y) < 80
