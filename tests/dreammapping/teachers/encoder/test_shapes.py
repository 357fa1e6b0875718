"""The arithmetic without values: the same shapes, types and kept tensors as with values."""

from __future__ import annotations

import pytest
import torch
from dreammapping.teachers.encoder import FrozenEncoder
from dreammapping.teachers.encoder.arithmetic import Norm, TorchArithmetic
from dreammapping.teachers.encoder.shapes import RUNS, ShapeArithmetic
from torch.autograd.graph import saved_tensors_hooks

from tests.helpers.tiny_teacher import make_vae


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
def test_results_have_the_shapes_types_and_layout_of_real_ones(dtype, biased):
    x, y = (torch.randn(2, 12, 5, 7).to(dtype, memory_format=torch.channels_last) for _ in range(2))
    sums = torch.promote_types(dtype, torch.float32)
    bias, weight, offset = torch.randn(3, 12, dtype=sums)
    pending, norm = bias if biased else None, Norm(weight, offset, 4, 1e-4, True)

    def results(arithmetic):
        total, moments = arithmetic.add(x, y, bias)
        statistics = arithmetic.statistics(moments, 35, norm)
        normalized = arithmetic.normalize(x, pending, statistics, norm)
        gradient = arithmetic.input_gradient(y, x, pending, statistics, norm, y if biased else None)
        return [total, statistics, normalized, gradient]

    for got, expected in zip(results(ShapeArithmetic()), results(TorchArithmetic())):
        assert got.shape == expected.shape and got.dtype == expected.dtype and got.stride() == expected.stride()


def test_moments_are_those_of_so_many_runs_at_most():
    for rows in (1, 256, 257, 4096):
        mean, deviation, run = ShapeArithmetic().moments(torch.empty(3, 8, rows, 1, dtype=torch.float16), None)
        assert mean.shape == deviation.shape and mean.dtype == torch.float32
        assert mean.shape[1] <= RUNS and (mean.shape[1] - 1) * run < rows <= mean.shape[1] * run


def kept_bytes(encode, device):
    """Bytes of the tensors that the encoder gives into autograd's keeping."""
    kept = {}

    def note(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes(), x  # alive, so that no other takes its place
        return x

    with saved_tensors_hooks(note, lambda x: x):
        encode(torch.zeros(2, 3, 64, 64, device=device, requires_grad=True))
    return sum(size for size, _ in kept.values())


def test_as_much_is_kept_for_the_backward_as_with_values():
    vae = make_vae(4, 64, 4).bfloat16().requires_grad_(False)
    real = kept_bytes(FrozenEncoder(vae), "cpu")
    assert kept_bytes(FrozenEncoder(vae.to("meta"), ShapeArithmetic()), "meta") == real > 2**19
