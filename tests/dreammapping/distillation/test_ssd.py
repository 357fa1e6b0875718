"""SSD against its formulas written out, image by image, and its two properties: no noise, and the length of C."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import LossContext, build_loss
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, eps_by_hand, gaussian_teacher, make_draw, prompted

T = [20, 99, 100, 101, 900]
M = 100


def build(teacher, **options):
    return build_loss({"type": "ssd", **options}, LossContext(teacher, SHAPE, torch.Generator()))


def run(scale=7.5, perp_neg=None, **options):
    teacher = gaussian_teacher(torch.float64, perp_neg=perp_neg is not None)
    draw = make_draw(teacher, T, dtype=torch.float64)
    asked = prompted(teacher, scale=scale, batch=len(T), perp_neg_weights=perp_neg)
    if perp_neg is not None:
        asked.embeddings |= {f"perp_neg_{i}": asked.embeddings["negative"] for i in range(2)}
    loss = build(teacher, **options)
    answers = loss.ask(draw, asked)
    return loss(draw, answers).residual, answers, teacher, draw


def by_hand(teacher, draw, i):
    """(C, |C| / |e~| e~) of one image, number by number."""
    cond, empty = eps_by_hand(teacher, draw, "cond", i), eps_by_hand(teacher, draw, "empty", i)
    e, n = cond.flatten().tolist(), draw.noise[i].flatten().tolist()
    r = sum(a * b for a, b in zip(e, n)) / sum(b * b for b in n)
    seeking = torch.tensor([a - r * b for a, b in zip(e, n)], dtype=torch.float64).view(SHAPE)
    c = cond - empty
    ratio = sum(x * x for x in c.flatten().tolist()) / sum(x * x for x in seeking.flatten().tolist())
    return c, ratio**0.5 * seeking


@pytest.mark.parametrize("threshold", [0, 99, 100, 999])
def test_the_code_form_by_hand(threshold):
    residual, _, teacher, draw = run(threshold=threshold)
    for i, t in enumerate(T):
        c, seeking = by_hand(teacher, draw, i)
        torch.testing.assert_close(residual[i], c if t > threshold else seeking)


@pytest.mark.parametrize("threshold", [0, 100])
def test_the_table_form_by_hand(threshold):
    residual, _, teacher, draw = run(scale=6.0, mode="table1", threshold=threshold)
    for i, t in enumerate(T):
        c, seeking = by_hand(teacher, draw, i)
        torch.testing.assert_close(residual[i], (0 if t > threshold else 1) * seeking + 6.0 * c)


def test_what_is_left_has_no_noise_and_the_length_of_the_direction():
    residual, answers, _, draw = run()
    for i, t in enumerate(T):
        along = torch.dot(residual[i].flatten(), draw.noise[i].flatten())
        assert (along.abs() < 1e-9) == (t <= M)
        torch.testing.assert_close(residual[i].norm(), (answers.cond - answers.uncond)[i].norm())


def test_the_code_form_knows_no_scale():
    assert torch.equal(run()[0], run(scale=0.0)[0])


def test_with_perp_neg_the_whole_direction_counts():
    weights = torch.tensor([[-1.0, -0.5]] * len(T), dtype=torch.float64)
    residual, answers, *_ = run(perp_neg=weights)
    assert torch.equal(residual[-1], answers.direction[-1])
    assert not torch.allclose(residual[-1], (answers.cond - answers.uncond)[-1])
    torch.testing.assert_close(residual[0].norm(), answers.direction[0].norm())


def test_a_prediction_that_is_all_noise_gives_nothing_instead_of_nan():
    _, answers, teacher, draw = run()
    answers.cond.copy_(0.5 * draw.noise)
    residual = build(teacher)(draw, answers).residual
    assert torch.isfinite(residual).all() and residual[0].abs().max() < 1


def test_mistakes():
    with pytest.raises(ConfigError, match="threshold is -5; it is a timestep"):
        build(gaussian_teacher(), threshold=-5)
