"""SegmentDreamer's loss against its formula."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import LossContext, build_loss
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, assert_batch_equals_images_alone, gaussian_teacher, make_draw, prompted

STEPS = {
    20: (0, 0),
    149: (0, 0),
    150: (0, 75),
    200: (0, 100),
    205: (200, 202),
    510: (400, 455),
    999: (800, 899),
}  # t: (e, s)
S = 7.5


def build(teacher, **options):
    return build_loss({"type": "sctd", **options}, LossContext(teacher, SHAPE, torch.Generator()))


def test_the_residual_is_the_formula_written_out():
    teacher = gaussian_teacher(torch.float64)
    draw = make_draw(teacher, list(STEPS), dtype=torch.float64)
    loss, asked = build(teacher), prompted(teacher, scale=S, batch=len(STEPS))
    residual = loss(draw, loss.ask(draw, asked)).residual
    mean, alpha_bar = teacher.distributions["cond"].means[0], teacher.schedule.alpha_bar.tolist()

    def predict(x, t, variance):
        ab = alpha_bar[t]
        return (1 - ab) ** 0.5 * (x - ab**0.5 * mean) / (ab * variance + 1 - ab)

    def jump(x, eps, t, to):  # Euler in x / a over sig / a
        ratio = [(1 / alpha_bar[u] - 1) ** 0.5 for u in (t, to)]
        return alpha_bar[to] ** 0.5 * (x / alpha_bar[t] ** 0.5 + (ratio[1] - ratio[0]) * eps)

    for i, (t, (e, s)) in enumerate(STEPS.items()):
        x_e = x = alpha_bar[e] ** 0.5 * draw.clean[i] + (1 - alpha_bar[e]) ** 0.5 * draw.noise[i]
        for here, there in [(e, t)] if s == e else [(e, s), (s, t)]:
            x = jump(x, predict(x, here, 1.0), here, there)
        cond, empty = predict(x, t, 0.05), predict(x, t, 1.0)
        x_s = jump(x, empty, t, s)
        slow, fast = jump(x_s, predict(x_s, s, 1.0), s, e), jump(x, cond + S * (cond - empty), t, e)
        torch.testing.assert_close(residual[i], slow - x_e + (S + 1) * (x_e - fast))


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_batch_of_short_and_long_ways_is_its_images_one_by_one(perp_neg):
    assert_batch_equals_images_alone(build(gaussian_teacher()), list(STEPS), perp_neg=perp_neg)


@pytest.mark.parametrize(("segments", "total"), [(1, 1000), (3, 1000), (7, 50)])
def test_steps_are_in_order_and_start_at_the_segments_borders(segments, total):
    t = torch.arange(1, total)
    e, s = build(gaussian_teacher(), segments=segments, split_from=0).earlier(t, total)
    assert bool((e <= s).all()) and bool((s < t).all())
    assert sorted(set(e.tolist())) == [k * total // segments for k in range(segments)]


@pytest.mark.parametrize("options", [{"segments": 0}, {"split_from": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match="segments"):
        build(gaussian_teacher(), **options)


def test_a_long_way_costs_five_forwards_and_a_short_one_four():
    loss = build(gaussian_teacher())
    assert [loss.cost(t, 0).forwards for t in (149, 150, 999)] == [4, 5, 5]
