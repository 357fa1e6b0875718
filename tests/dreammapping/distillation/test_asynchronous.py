"""ScaleDreamer's asynchronous loss against its formula."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import LossContext, build_loss
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, gaussian_teacher, make_draw, prompted

T = [10, 21, 500, 995]
S = 7.5


def build(teacher, seed=0, **options):
    context = LossContext(teacher, SHAPE, torch.Generator().manual_seed(seed))
    return build_loss({"type": "asynchronous", **options}, context)


def test_the_residual_is_the_formula_written_out():
    teacher = gaussian_teacher(torch.float64)
    draw = make_draw(teacher, T, dtype=torch.float64)
    loss, asked = build(teacher), prompted(teacher, scale=S, batch=len(T))
    residual = loss(draw, loss.ask(draw, asked)).residual
    share = torch.rand(len(T), generator=torch.Generator().manual_seed(0)).tolist()
    mean = teacher.distributions["cond"].means[0]
    for i, t in enumerate(T):
        later = min(t + round(0.1 * max(t - 20, 0) * share[i]), 999)
        eps = {}
        for time in (t, later):
            ab = teacher.schedule.alpha_bar[time].item()
            x = ab**0.5 * draw.clean[i] + (1 - ab) ** 0.5 * draw.noise[i]
            for name, variance in (("cond", 0.05), ("empty", 1.0)):
                eps[name, time] = (1 - ab) ** 0.5 * (x - ab**0.5 * mean) / (ab * variance + 1 - ab)
        guided = eps["cond", t] + S * (eps["cond", t] - eps["empty", t])
        torch.testing.assert_close(residual[i], guided - eps["cond", later])


def test_without_a_shift_only_guidance_is_left():
    teacher = gaussian_teacher(torch.float64)
    draw = make_draw(teacher, T, dtype=torch.float64)
    loss, asked = build(teacher, shift_ratio=0.0), prompted(teacher, scale=S, batch=len(T))
    guided, _ = answers = loss.ask(draw, asked)
    torch.testing.assert_close(loss(draw, answers).residual, guided.term)


def test_later_steps_lie_ahead_within_the_ratio_and_the_table():
    t = torch.arange(1000).repeat(20)
    later = build(gaussian_teacher(), shift_ratio=0.5).later(t, 1000)
    ahead = later - t
    assert bool((ahead >= 0).all()) and int(later.max()) == 999 and not bool(ahead[t <= 20].any())
    assert bool((ahead <= 0.5 * (t - 20).clamp(min=0) + 0.5).all())
    inside = (t > 300) & (t < 600)
    assert (ahead / (t - 20))[inside].mean().item() == pytest.approx(0.25, abs=0.01)


def test_negative_options_are_refused():
    with pytest.raises(ConfigError, match="shift_ratio"):
        build(gaussian_teacher(), shift_ratio=-0.1)
