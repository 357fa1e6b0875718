"""CSD against its formula written out, where its forms meet, and what it must not depend on."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import LossContext, PromptedTeacher, build_loss
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, eps_by_hand, gaussian_teacher, make_draw, prompted

T = [20, 500, 900]
EARLY = {"k_c": 1.0, "k_n": [0, 0.0, -1.0, 100], "k_0": [0, -1.0, 0.0, 100]}


def build(teacher, **options):
    return build_loss({"type": "csd", **options}, LossContext(teacher, SHAPE, torch.Generator()))


def run(*, step=0, scale=7.5, perp_neg=None, anchor="empty", **options):
    teacher = gaussian_teacher(torch.float64, perp_neg=perp_neg is not None)
    draw = make_draw(teacher, T, dtype=torch.float64, step=step)
    asked = prompted(teacher, scale=scale, batch=len(T), anchor=anchor, perp_neg_weights=perp_neg)
    if perp_neg is not None:
        asked.embeddings |= {f"perp_neg_{i}": asked.embeddings["negative"] for i in range(2)}
    loss = build(teacher, **options)
    return loss(draw, loss.ask(draw, asked)).residual, teacher, draw


@pytest.mark.parametrize(("step", "k_n", "k_0"), [(0, 0.0, -1.0), (25, -0.25, -0.75), (100, -1.0, 0.0), (200, -1, 0)])
def test_the_code_form_by_hand(step, k_n, k_0):
    residual, teacher, draw = run(step=step, **EARLY)
    for i in range(len(T)):
        cond, negative, empty = (eps_by_hand(teacher, draw, n, i) for n in ("cond", "negative", "empty"))
        torch.testing.assert_close(residual[i], cond + k_n * negative + k_0 * empty)


@pytest.mark.parametrize(("step", "lam"), [(0, 1.0), (50, 0.75), (100, 0.5)])
def test_the_table_form_by_hand(step, lam):
    residual, teacher, draw = run(step=step, scale=6.0, mode="table1", lam_s=[0, 1.0, 0.5, 100])
    for i in range(len(T)):
        cond, negative, empty = (eps_by_hand(teacher, draw, n, i) for n in ("cond", "negative", "empty"))
        torch.testing.assert_close(residual[i], cond - lam * negative + 6.0 * (cond - empty))


def test_the_forms_meet_where_the_reference_says():
    s = 3.0
    table, *_ = run(mode="table1", scale=s)
    code, *_ = run(k_n=-1 / (1 + s), k_0=-s / (1 + s))
    torch.testing.assert_close(code, table / (1 + s))


@pytest.mark.parametrize("step", [0, 2500, 5000])
def test_what_all_predictions_share_has_no_effect(step):
    """Zero sum, at the default coefficients: a constant in every prediction leaves R as it is."""
    residual, teacher, draw = run(step=step)
    original = teacher.predict
    teacher.predict = lambda *args, **options: {name: eps + 5.0 for name, eps in original(*args, **options).items()}
    loss = build(teacher)
    shifted = loss(draw, loss.ask(draw, prompted(teacher, batch=len(T)))).residual
    torch.testing.assert_close(shifted, residual)


def test_the_code_form_knows_no_scale_and_no_anchor():
    plain, *_ = run(step=1000)
    assert torch.equal(run(step=1000, scale=0.0)[0], plain)
    torch.testing.assert_close(run(step=1000, anchor="negative")[0], plain)


@pytest.mark.parametrize("anchor", ["empty", "negative"])
def test_either_anchor_costs_three_calls(anchor):
    _, teacher, _ = run(anchor=anchor)
    assert teacher.calls.forwards == build(teacher).cost(500, 0).forwards * len(T) == 3 * len(T)


def test_perp_neg_adds_its_directions():
    weights = torch.tensor([[-1.0, -0.5]] * len(T), dtype=torch.float64)
    plain, *_ = run(step=1000)
    with_it, teacher, draw = run(step=1000, perp_neg=weights, k_perp=2.0)
    for i in range(len(T)):
        cond, negative, empty = (eps_by_hand(teacher, draw, n, i) for n in ("cond", "negative", "empty"))
        direction, other = cond - empty, negative - empty
        across = other - (other * direction).sum() / (direction * direction).sum() * direction
        torch.testing.assert_close(with_it[i] - plain[i], 2.0 * (-1.5) * across)
    assert torch.equal(run(step=1000, perp_neg=weights, k_perp=0.0)[0], plain)


def test_perp_negs_directions_are_of_all_guidance():
    """e_u + (s + 1) (direction) is the guided prediction, with and without Perp-Neg."""
    weights = torch.tensor([[-1.0, -0.5]] * len(T), dtype=torch.float64)
    teacher = gaussian_teacher(torch.float64, perp_neg=True)
    draw = make_draw(teacher, T, dtype=torch.float64)
    texts = {name: torch.zeros(1, 1, 1) for name in teacher.distributions}
    for given in (None, weights):
        plain = prompted(teacher, scale=4.0, batch=len(T))
        asked = PromptedTeacher(teacher, texts, guidance_scale=4.0, convention=plain.convention, perp_neg_weights=given)
        a = asked.guided(draw.noisy, draw.t)
        torch.testing.assert_close(a.uncond + 5.0 * a.direction, a.guided)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "table"}, "loss.mode is 'table'; it must be one of 'code', 'table1'"),
        ({"k_n": -0.5}, "k_c \\+ k_n \\+ k_0 is -0.5 at step 0; it must be 0 at every step"),
        ({"k_n": [0, 0.0, -1.0, 4000]}, "k_c \\+ k_n \\+ k_0 is -0.2 at step 4000"),
        ({"k_n": [0, -1.0]}, "is no schedule"),
        ({"lam_s": [1, 2, 3]}, "is no schedule"),
        ({"k_p": 1}, "loss.k_p is not a known key"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(gaussian_teacher(), **options)
