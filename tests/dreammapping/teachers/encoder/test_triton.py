"""The Triton kernels against the arithmetic in float64: on a GPU, or without one in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from dreammapping.teachers.encoder.arithmetic import Norm, TorchArithmetic

triton = pytest.importorskip("triton")
if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
    pytest.skip("no GPU; TRITON_INTERPRET=1 runs the kernels on a CPU", allow_module_level=True)

EXACT = TorchArithmetic()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUTS = [{"tile": 256, "warps": 4, "programs": 6}, {"tile": 64, "warps": 4, "programs": 100, "longest": 3, "stages": 3}]


@pytest.fixture(params=CUTS, ids=["long runs", "short runs"])
def kernels(request):
    from dreammapping.teachers.encoder.triton_arithmetic import Launch, TritonArithmetic

    return TritonArithmetic(Launch(**request.param))


def layers(b, c, h, w, dtype, seed):
    values = torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed)) + seed
    return values.to(DEVICE, dtype, memory_format=torch.channels_last)


def close(got, expected, dtype):
    assert (got.double() - expected).norm() < (2e-5 if dtype == torch.float32 else 2e-3) * expected.norm()


@pytest.mark.parametrize(("shape", "groups"), [((2, 12, 5, 7), 4), ((1, 32, 3, 3), 32)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_every_operation_agrees(kernels, shape, groups, dtype, silu, biased):
    x, y, gradient = (layers(*shape, dtype, seed) for seed in (1, 2, 3))
    bias, weight, offset = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(4)).to(DEVICE)
    shift, further = (bias, y) if biased else (None, None)
    norm, rows = Norm(weight, offset, groups, 1e-4, silu), shape[2] * shape[3]
    norm64 = norm._replace(weight=weight.double(), offset=offset.double())
    x64, y64, shift64 = x.double(), y.double(), None if shift is None else shift.double()

    statistics = kernels.statistics(kernels.moments(x, shift), rows, norm)
    known = EXACT.statistics(EXACT.moments(x64, shift64), rows, norm64)
    close(statistics, known, torch.float32)
    close(kernels.normalize(x, shift, statistics, norm), EXACT.normalize(x64, shift64, known, norm64), dtype)
    got = kernels.input_gradient(gradient, x, shift, statistics, norm, further)
    skip = None if further is None else y64
    close(got, EXACT.input_gradient(gradient.double(), x64, shift64, known, norm64, skip), dtype)

    total, moments = kernels.add(x, y, bias)
    total64, moments64 = EXACT.add(x64, y64, bias.double())
    close(total, total64, dtype)
    close(kernels.statistics(moments, rows, norm), EXACT.statistics(moments64, rows, norm64), dtype)


def test_a_mean_far_from_zero_cancels_no_digits(kernels):
    x = (layers(1, 8, 6, 6, torch.float32, 0) + 3000).contiguous(memory_format=torch.channels_last)
    norm = Norm(*torch.ones(2, 8, device=DEVICE), 2, 1e-6, False)
    got = kernels.statistics(kernels.moments(x, None), 36, norm)
    close(got[..., 1], EXACT.statistics(EXACT.moments(x.double(), None), 36, norm)[..., 1], torch.float32)


def test_a_tensor_in_another_layout_is_read_as_what_it_is(kernels):
    x = layers(2, 8, 3, 5, torch.float32, 1)
    norm = Norm(*torch.ones(2, 8, device=DEVICE), 2, 1e-6, True)
    statistics = kernels.statistics(kernels.moments(x, None), 15, norm)
    a, b = (kernels.normalize(v, None, statistics, norm) for v in (x, x.contiguous()))
    assert torch.equal(a, b)
    a, b = (kernels.input_gradient(v, x, None, statistics, norm, v) for v in (x, x.contiguous()))
    assert torch.equal(a, b)
