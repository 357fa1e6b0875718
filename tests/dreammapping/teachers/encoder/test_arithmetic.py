"""The normalization that the encoder is made of, against torch's own and autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from dreammapping.teachers.encoder.arithmetic import Moments, Norm, TorchArithmetic
from torch.nn import functional as F

EXACT = TorchArithmetic()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_group_norm(silu, groups, biased):
    x, bias = draw(2, 6, 5, 4).requires_grad_(), draw(6, seed=1) if biased else None
    norm = Norm(draw(6, seed=2), draw(6, seed=3), groups, 1e-3, silu)
    whole = x if bias is None else x + bias[:, None, None]
    expected = F.group_norm(whole, groups, norm.weight, norm.offset, norm.eps)
    expected = F.silu(expected) if silu else expected
    gradient, further = draw(*x.shape, seed=4), draw(*x.shape, seed=5)
    (known,) = torch.autograd.grad(expected, x, gradient)
    with torch.no_grad():
        statistics = EXACT.statistics(EXACT.moments(x, bias), 20, norm)
        torch.testing.assert_close(EXACT.normalize(x, bias, statistics, norm), expected)
        torch.testing.assert_close(EXACT.input_gradient(gradient, x, bias, statistics, norm, None), known)
        with_skip = EXACT.input_gradient(gradient, x, bias, statistics, norm, further)
    torch.testing.assert_close(with_skip, known + further)


def test_a_sum_comes_with_its_moments():
    x, y, bias = draw(2, 6, 5, 4), draw(2, 6, 5, 4, seed=1), draw(6, seed=2)
    total, moments = EXACT.add(x, y, bias)
    torch.testing.assert_close(total, x + y + bias[:, None, None])
    torch.testing.assert_close(moments.mean[:, 0], total.mean((2, 3)))
    torch.testing.assert_close(moments.deviation[:, 0], total.var((2, 3), correction=0) * 20)


def test_moments_of_unequal_runs_merge_to_those_of_the_whole():
    rows, norm = draw(2, 20, 6) + 100, Norm(torch.ones(6), torch.zeros(6), 2, 0.0, False)
    parts = rows.split(8, 1)  # 8, 8 and 4 rows
    mean = torch.stack([part.mean(1) for part in parts], 1)
    deviation = torch.stack([part.var(1, correction=0) * part.shape[1] for part in parts], 1)
    got = EXACT.statistics(Moments(mean, deviation, 8), 20, norm)
    grouped = rows.unflatten(-1, (2, 3))
    torch.testing.assert_close(got[..., 0], grouped.mean((1, 3)))
    torch.testing.assert_close(got[..., 1], grouped.var((1, 3), correction=0).rsqrt())


def test_half_precision_is_summed_in_single():
    x = (draw(1, 4, 64, 64) * 0.1 + 30).half()  # the sum of squares leaves float16's range
    norm = Norm(torch.ones(4), torch.zeros(4), 2, 1e-6, False)
    statistics = EXACT.statistics(EXACT.moments(x, None), 64 * 64, norm)
    assert statistics.dtype == torch.float32
    y = EXACT.normalize(x, None, statistics, norm)
    exact = F.group_norm(x.double(), 2)
    assert y.dtype == torch.float16 and (y - exact).norm() < 2e-3 * exact.norm()
