"""ISM against its formula, image by image in float64, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from dreammapping.distillation import LossContext, build_loss, build_timesteps
from dreammapping.errors import ConfigError

from tests.helpers.score import (
    SHAPE,
    TextTeacher,
    assert_batch_equals_images_alone,
    gaussian_teacher,
    make_draw,
    prompted,
)

F64 = torch.float64
T = [0, 1, 20, 81, 290, 500, 980, 999]


def build(teacher, **options):
    return build_loss({"type": "ism", **options}, LossContext(teacher, SHAPE, torch.Generator().manual_seed(0)))


def by_hand(teacher, draw, i, interval, scale):
    """R of image i, with scalars: noise at step 1, jumps of 200 by the empty prompt up to t - D, one jump to t."""
    ab = teacher.schedule.alpha_bar.tolist()

    def eps(name, x, t):
        mixture = teacher.distributions[name]
        a, variance = math.sqrt(ab[t]), float(mixture.variances[0])
        return math.sqrt(1 - ab[t]) * (x - a * mixture.means[0]) / (ab[t] * variance + 1 - ab[t])

    def jump(x, e, now, ahead):
        x0 = (x - math.sqrt(1 - ab[now]) * e) / math.sqrt(ab[now])
        return math.sqrt(ab[ahead]) * x0 + math.sqrt(1 - ab[ahead]) * e

    t = int(draw.t[i])
    now = min(1, t)
    s = max(t - interval, now)
    x = math.sqrt(ab[now]) * draw.clean[i] + math.sqrt(1 - ab[now]) * draw.noise[i]
    while now < s:
        ahead = min(now + 200, s)
        x, now = jump(x, eps("empty", x, now), now, ahead), ahead
    target = eps("empty", x, s)
    x = jump(x, target, s, t)
    cond, anchor = eps("cond", x, t), eps("negative", x, t)
    return cond + scale * (cond - anchor) - target


@pytest.mark.parametrize(("step", "interval"), [(0, 100), (700, 90), (1500, 80), (4000, 80)])
def test_the_residual_is_the_papers(step, interval):
    teacher = gaussian_teacher(F64)
    draw = make_draw(teacher, T, dtype=F64, step=step)
    loss = build(teacher)
    residual = loss(draw, loss.ask(draw, prompted(teacher, scale=6.5, batch=len(T), anchor="negative"))).residual
    for i in range(len(T)):
        torch.testing.assert_close(residual[i], by_hand(teacher, draw, i, interval, 6.5), rtol=1e-10, atol=1e-10)


def test_without_an_interval_only_guidance_is_left():
    """s = t, and both predictions of the empty prompt are one: R = (1 + s) (e_c - e_u) at the inverted x_t."""
    teacher = gaussian_teacher(F64)
    draw = make_draw(teacher, T, dtype=F64)
    loss = build(teacher, interval=0)
    answers = loss.ask(draw, prompted(teacher, scale=2.0, batch=len(T)))
    torch.testing.assert_close(loss(draw, answers).residual, 3 * (answers.guided.cond - answers.guided.uncond))


def test_the_residual_is_table_1_inside_equation_10():
    teacher = gaussian_teacher(F64)
    draw = make_draw(teacher, T, dtype=F64)
    loss = build(teacher)
    answers = loss.ask(draw, prompted(teacher, scale=2.0, batch=len(T)))
    expected = (answers.guided.cond - answers.target) + 2.0 * (answers.guided.cond - answers.guided.uncond)
    torch.testing.assert_close(loss(draw, answers).residual, expected)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_batch_is_its_images_alone(perp_neg):
    assert_batch_equals_images_alone(build(TextTeacher()), T, perp_neg=perp_neg, step=300)


def test_only_the_empty_prompt_is_inverted_and_never_outside_the_schedule():
    teacher = TextTeacher()
    assert_batch_equals_images_alone(build(teacher), [5, 999])
    loss, closed = build(teacher), gaussian_teacher(F64)
    del closed.distributions["negative"]
    draw = make_draw(closed, [5, 999], dtype=F64)
    loss.ask(draw, prompted(closed))  # anchor empty: neither asks for the negative prompt
    assert closed.calls.forwards == loss.cost(5, 0).forwards + loss.cost(999, 0).forwards


@pytest.mark.parametrize(("t", "jumps"), [(0, 0), (1, 0), (101, 0), (102, 1), (301, 1), (302, 2), (980, 5), (999, 5)])
def test_what_it_costs(t, jumps):
    """The inversion's jumps up to s = t - 100, the call at x_s, and the guided one."""
    assert build(TextTeacher()).cost(t, 0).forwards == jumps + 3


@pytest.mark.parametrize(("step", "interval", "average"), [(0, 100, 5.58), (1500, 80, 4.50)])
def test_the_average_cost_of_lucid_dreamers_run(step, interval, average):
    """Known for their code, which makes one more call, without effect, where s is the first step."""
    low, high = build_timesteps({"type": "luciddreamer"}).bounds(step, 1000)
    loss = build(TextTeacher())
    costs = [loss.cost(t, step).forwards + (t - interval <= 1) for t in range(low, high + 1)]
    assert sum(costs) / len(costs) == pytest.approx(average, abs=0.006)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": -1}, "must not lie above t"),
        ({"interval": [0, 100, -5, 1500]}, "must not lie above t"),
        ({"interval": [100, 80]}, "no schedule"),
        ({"inversion_jump": 0}, "inversion_jump must be at least 1"),
        ({"first_step": -1}, "first_step at least 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(TextTeacher(), **options)
