"""Classifier-free guidance: the two conventions and Perp-Neg."""

from __future__ import annotations

import pytest
import torch
from dreammapping.distillation import CFGConvention, Guided, guide, perpendicular, seed_scale

SEED, USUAL = CFGConvention.SEED, CFGConvention.USUAL


@pytest.fixture
def eps():
    return torch.randn(4, 2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)


@pytest.mark.parametrize("s", [0.0, 7.5, 100.0])
def test_the_usual_scale_is_the_papers_plus_one(eps, s):
    cond, uncond, *_ = eps
    seed = guide(cond, uncond, s, SEED)
    torch.testing.assert_close(seed, guide(cond, uncond, s + 1, USUAL))
    torch.testing.assert_close(seed, cond + s * (cond - uncond))
    torch.testing.assert_close(guide(cond, uncond, s, USUAL), uncond + s * (cond - uncond))
    assert seed_scale(s + 1, USUAL) == s == seed_scale(s, SEED)


def test_scales_without_effect(eps):
    cond, uncond, *_ = eps
    assert torch.equal(guide(cond, uncond, 0.0, SEED), cond)
    torch.testing.assert_close(guide(cond, uncond, 1.0, USUAL), cond)
    torch.testing.assert_close(guide(cond, uncond, 0.0, USUAL), uncond)


def test_the_term_is_what_guidance_adds(eps):
    cond, uncond, *_ = eps
    guided = Guided(cond, uncond, guide(cond, uncond, 7.5, SEED))
    torch.testing.assert_close(guided.term, 7.5 * (cond - uncond))


@pytest.mark.parametrize("convention", [SEED, USUAL])
def test_perp_neg_against_the_formula(eps, convention):
    cond, uncond, first, second = eps
    weights = torch.tensor([[-0.5, -2.0], [0.0, -1.0]], dtype=torch.float64)
    got = guide(cond, uncond, 7.5, convention, [first, second], weights)
    S = 7.5 + (convention is SEED)
    for b in range(2):
        c = (cond - uncond)[b].flatten()
        total = c.clone()
        for i, negative in enumerate((first, second)):
            d = (negative - uncond)[b].flatten()
            total += weights[b, i] * (d - (d @ c) / (c @ c) * c)
        torch.testing.assert_close(got[b].flatten(), uncond[b].flatten() + S * total)


def test_perp_neg_without_weight_is_plain_guidance(eps):
    cond, uncond, first, second = eps
    zero = torch.zeros(2, 2, dtype=torch.float64)
    torch.testing.assert_close(guide(cond, uncond, 7.5, SEED, [first, second], zero), guide(cond, uncond, 7.5, SEED))
    with pytest.raises(ValueError, match="weights of shape"):
        guide(cond, uncond, 7.5, SEED, [first], zero)


def test_perpendicular_is_perpendicular_and_survives_zero(eps):
    x, y, *_ = eps
    p = perpendicular(x, y)
    torch.testing.assert_close((p * y).sum((1, 2, 3)), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(perpendicular(3 * y, y), torch.zeros_like(y), atol=1e-12, rtol=0)
    assert torch.equal(perpendicular(x, torch.zeros_like(y)), x)
