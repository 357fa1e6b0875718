"""NFSD against its formula written out, image by image."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import CFGConvention, LossContext, PromptedTeacher, build_loss
from dreammapping.errors import ConfigError

from tests.helpers.score import SHAPE, embeddings, eps_by_hand, gaussian_teacher, make_draw

T = [20, 199, 200, 201, 900]


def build(teacher, **options):
    return build_loss({"type": "nfsd", **options}, LossContext(teacher, SHAPE, torch.Generator()))


def run(convention=CFGConvention.USUAL, scale=7.5, **options):
    teacher = gaussian_teacher(torch.float64)
    draw = make_draw(teacher, T, dtype=torch.float64)
    asked = PromptedTeacher(teacher, embeddings(len(T)), guidance_scale=scale, convention=convention)
    loss = build(teacher, **options)
    return loss(draw, loss.ask(draw, asked)).residual, teacher, draw


@pytest.mark.parametrize("threshold", [0, 200, 300])
def test_the_residual_by_hand(threshold):
    residual, teacher, draw = run(threshold=threshold)
    for i, t in enumerate(T):
        cond, negative, empty = (eps_by_hand(teacher, draw, n, i) for n in ("cond", "negative", "empty"))
        delta_d = empty if t < threshold else empty - negative
        torch.testing.assert_close(residual[i], delta_d + 7.5 * (cond - empty))


def test_it_is_its_row_of_table_1():
    """R = e_c - lam e_n + s C with the paper's scale s."""
    residual, teacher, draw = run(CFGConvention.SEED, 6.5)
    for i, t in enumerate(T):
        cond, negative, empty = (eps_by_hand(teacher, draw, n, i) for n in ("cond", "negative", "empty"))
        lam = 0.0 if t < 200 else 1.0
        torch.testing.assert_close(residual[i], cond - lam * negative + 6.5 * (cond - empty))


def test_no_noise_reaches_it_but_through_the_network():
    residual, teacher, draw = run()
    loss, other = build(teacher), make_draw(teacher, T, dtype=torch.float64)
    other.noise.neg_()  # x_t stays what it was
    asked = PromptedTeacher(teacher, embeddings(len(T)), guidance_scale=7.5, convention=CFGConvention.USUAL)
    assert torch.equal(loss(other, loss.ask(other, asked)).residual, residual)


def test_mistakes():
    with pytest.raises(ConfigError, match="threshold is -1; it is a timestep"):
        build(gaussian_teacher(), threshold=-1)
