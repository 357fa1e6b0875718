"""Group normalization over channels-last tensors in Triton: see arithmetic.Arithmetic for what each operation means.

All of it is bound by memory, so the kernels are ordered by what they read and write. A sum over the pixels of an image
is cut into runs of rows: there are too few images and groups to fill a GPU with one program each. Each program sums its
run channel by channel, a small second kernel puts the runs together; nothing is added atomically, so the result is the
same every time. A kernel that reads a tensor for the second time does it from the end: what the first pass read last
is still in the L2 cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import Moments, Norm


@dataclass(frozen=True)
class Launch:
    """How the work is cut up."""

    tile: int = 4096
    """Elements a program holds at a time: rows times channels, rounded up to a power of two."""
    warps: int = 8
    programs: int = 1024
    """Programs that a sum over all images is spread over, about."""
    longest: int = 512
    """Runs per image at most: the second kernel takes all of them at once."""


@triton.jit
def _load(x, other, bias, at, channel, inside, mask, BIASED: tl.constexpr, ADDS: tl.constexpr):
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + channel, mask=inside, other=0.0)[None, :]
    return value


@triton.jit
def _moments(
    x, other, bias, total, mean, deviation, rows, run,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, BIASED: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    part, picture = tl.program_id(0), tl.program_id(1)
    base = picture.to(tl.int64) * rows * C
    x += base
    other += base
    total += base
    channel = tl.arange(0, BC)
    inside = channel < C
    start = part * run
    stop = tl.minimum(start + run, rows)
    # Deviations are summed about the run's first pixel: about zero, a mean far from zero would cancel digits.
    at = start * C + channel[None, :]
    pivot = _load(x, other, bias, at, channel, inside, inside[None, :], BIASED, ADDS)
    first = tl.zeros([BR, BC], tl.float32)
    second = tl.zeros([BR, BC], tl.float32)
    for begin in range(start, stop, BR):
        row = begin + tl.arange(0, BR)
        mask = (row < stop)[:, None] & inside[None, :]
        at = row[:, None] * C + channel[None, :]
        value = _load(x, other, bias, at, channel, inside, mask, BIASED, ADDS)
        if ADDS:
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + at, rounded, mask=mask)
            value = rounded.to(tl.float32)
        apart = tl.where(mask, value - pivot, 0.0)
        first += apart
        second += apart * apart
    count = (stop - start).to(tl.float32)
    sums = tl.sum(first, 0)
    at = (picture * tl.num_programs(0) + part) * C + channel
    tl.store(mean + at, tl.sum(pivot, 0) + sums / count, mask=inside)
    tl.store(deviation + at, tl.sum(second, 0) - sums * sums / count, mask=inside)


@triton.jit
def _merge_moments(
    mean, deviation, statistics, rows, run, runs, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, BS: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    group, picture = tl.program_id(0), tl.program_id(1)
    width: tl.constexpr = C // GROUPS
    part, channel = tl.arange(0, BS)[:, None], tl.arange(0, BW)[None, :]
    mask = (part < runs) & (channel < width)
    at = (picture * runs + part) * C + group * width + channel
    average = tl.load(mean + at, mask=mask, other=0.0)
    count = tl.where(mask, tl.minimum(rows - part * run, run), 0).to(tl.float32)
    total = (rows * width).to(tl.float32)
    center = tl.sum(tl.sum(count * average, 1), 0) / total
    apart = average - center
    spread = tl.load(deviation + at, mask=mask, other=0.0) + count * apart * apart
    variance = tl.sum(tl.sum(spread, 1), 0) / total
    to = statistics + (picture * GROUPS + group) * 2
    tl.store(to, center)
    tl.store(to + 1, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _standardized(
    x, bias, statistics, at, channel, inside, mask, picture,
    C: tl.constexpr, GROUPS: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    value = _load(x, x, bias, at, channel, inside, mask, BIASED, False)
    entry = statistics + (picture * GROUPS + channel // (C // GROUPS)) * 2
    center = tl.load(entry, mask=inside, other=0.0)
    scale = tl.load(entry + 1, mask=inside, other=0.0)
    return (value - center[None, :]) * scale[None, :], scale


@triton.jit
def _slope(gradient, unit, weight, offset, at, channel, inside, mask, SILU: tl.constexpr):
    """Gradient with respect to the standardized value."""
    slope = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
    gain = tl.load(weight + channel, mask=inside, other=0.0)[None, :]
    if SILU:
        z = unit * gain + tl.load(offset + channel, mask=inside, other=0.0)[None, :]
        sigmoid = tl.sigmoid(z)
        slope *= sigmoid * (1.0 + z * (1.0 - sigmoid))
    return slope * gain


@triton.jit
def _normalize(
    x, bias, statistics, weight, offset, y, rows,
    C: tl.constexpr, GROUPS: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    BIASED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    picture = tl.num_programs(1) - 1 - tl.program_id(1)
    base = picture.to(tl.int64) * rows * C
    channel = tl.arange(0, BC)
    inside = channel < C
    row = tile * BR + tl.arange(0, BR)
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * C + channel[None, :]
    unit, _ = _standardized(x + base, bias, statistics, at, channel, inside, mask, picture, C, GROUPS, BIASED)
    z = unit * tl.load(weight + channel, mask=inside, other=0.0)[None, :]
    z += tl.load(offset + channel, mask=inside, other=0.0)[None, :]
    if SILU:
        z *= tl.sigmoid(z)
    tl.store(y + base + at, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_sums(
    gradient, x, bias, statistics, weight, offset, plain, along, rows, run,
    C: tl.constexpr, GROUPS: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    BIASED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    part, picture = tl.program_id(0), tl.program_id(1)
    base = picture.to(tl.int64) * rows * C
    x += base
    gradient += base
    channel = tl.arange(0, BC)
    inside = channel < C
    start = part * run
    stop = tl.minimum(start + run, rows)
    first = tl.zeros([BR, BC], tl.float32)
    second = tl.zeros([BR, BC], tl.float32)
    for begin in range(start, stop, BR):
        row = begin + tl.arange(0, BR)
        mask = (row < stop)[:, None] & inside[None, :]
        at = row[:, None] * C + channel[None, :]
        unit, _ = _standardized(x, bias, statistics, at, channel, inside, mask, picture, C, GROUPS, BIASED)
        slope = _slope(gradient, unit, weight, offset, at, channel, inside, mask, SILU)
        first += slope  # zero where masked, as the gradient is
        second += slope * unit
    at = (picture * tl.num_programs(0) + part) * C + channel
    tl.store(plain + at, tl.sum(first, 0), mask=inside)
    tl.store(along + at, tl.sum(second, 0), mask=inside)


@triton.jit
def _merge_sums(
    plain, along, means, rows, runs,
    C: tl.constexpr, GROUPS: tl.constexpr, BS: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    group, picture = tl.program_id(0), tl.program_id(1)
    width: tl.constexpr = C // GROUPS
    part, channel = tl.arange(0, BS)[:, None], tl.arange(0, BW)[None, :]
    mask = (part < runs) & (channel < width)
    at = (picture * runs + part) * C + group * width + channel
    total = (rows * width).to(tl.float32)
    to = means + (picture * GROUPS + group) * 2
    tl.store(to, tl.sum(tl.sum(tl.load(plain + at, mask=mask, other=0.0), 1), 0) / total)
    tl.store(to + 1, tl.sum(tl.sum(tl.load(along + at, mask=mask, other=0.0), 1), 0) / total)


@triton.jit
def _input_gradient(
    gradient, x, bias, statistics, weight, offset, means, further, y, rows,
    C: tl.constexpr, GROUPS: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    BIASED: tl.constexpr, SILU: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    picture = tl.num_programs(1) - 1 - tl.program_id(1)
    base = picture.to(tl.int64) * rows * C
    channel = tl.arange(0, BC)
    inside = channel < C
    row = tile * BR + tl.arange(0, BR)
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * C + channel[None, :]
    unit, scale = _standardized(x + base, bias, statistics, at, channel, inside, mask, picture, C, GROUPS, BIASED)
    slope = _slope(gradient + base, unit, weight, offset, at, channel, inside, mask, SILU)
    entry = means + (picture * GROUPS + channel // (C // GROUPS)) * 2
    plain = tl.load(entry, mask=inside, other=0.0)[None, :]
    along = tl.load(entry + 1, mask=inside, other=0.0)[None, :]
    result = (slope - plain - unit * along) * scale[None, :]
    if ADDS:
        result += tl.load(further + base + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + base + at, result.to(y.dtype.element_ty), mask=mask)


class TritonArithmetic:
    """See arithmetic.Arithmetic. For CUDA tensors of 16 or 32 bits."""

    def __init__(self, launch: Launch = Launch()) -> None:
        self.launch = launch

    def moments(self, x: Tensor, bias: Tensor | None) -> Moments:
        return self._summed(x, None, bias, x)

    def add(self, x: Tensor, y: Tensor, bias: Tensor) -> tuple[Tensor, Moments]:
        total = torch.empty_like(_dense(x))
        return total, self._summed(x, y, bias, total)

    def statistics(self, moments: Moments, rows: int, norm: Norm) -> Tensor:
        pictures, runs, channels = moments.mean.shape
        result = moments.mean.new_empty(pictures, norm.groups, 2)
        _merge_moments[(norm.groups, pictures)](
            moments.mean, moments.deviation, result, rows, moments.run, runs, norm.eps,
            C=channels, **self._merging(norm, channels, runs),
        )  # fmt: skip
        return result

    def normalize(self, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm) -> Tensor:
        x = _dense(x)
        y, cut = torch.empty_like(x), self._cut(x)
        _normalize[self._tiles(x, cut)](
            x, x if bias is None else bias, statistics, norm.weight, norm.offset, y, _rows(x),
            GROUPS=norm.groups, BIASED=bias is not None, SILU=norm.silu, **cut,
        )  # fmt: skip
        return y

    def input_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        bias: Tensor | None,
        statistics: Tensor,
        norm: Norm,
        further: Tensor | None,
    ) -> Tensor:
        gradient, x = _dense(gradient), _dense(x)
        pictures, channels, rows, (run, runs) = len(x), x.shape[1], _rows(x), self._runs(x)
        plain, along = statistics.new_empty(2, pictures, runs, channels)
        means, y = torch.empty_like(statistics), torch.empty_like(x)
        read = (gradient, x, x if bias is None else bias, statistics, norm.weight, norm.offset)
        cut = dict(GROUPS=norm.groups, BIASED=bias is not None, SILU=norm.silu, **self._cut(x))
        _gradient_sums[(runs, pictures)](*read, plain, along, rows, run, **cut)
        _merge_sums[(norm.groups, pictures)](
            plain, along, means, rows, runs, C=channels, **self._merging(norm, channels, runs)
        )
        added = x if further is None else _dense(further)
        _input_gradient[self._tiles(x, cut)](*read, means, added, y, rows, ADDS=further is not None, **cut)
        return y

    def _summed(self, x: Tensor, y: Tensor | None, bias: Tensor | None, total: Tensor) -> Moments:
        x, (run, runs) = _dense(x), self._runs(x)
        mean, deviation = x.new_empty(2, len(x), runs, x.shape[1], dtype=torch.float32)
        _moments[(runs, len(x))](
            x, x if y is None else _dense(y), x if bias is None else bias, total, mean, deviation, _rows(x), run,
            BIASED=bias is not None, ADDS=y is not None, **self._cut(x),
        )  # fmt: skip
        return Moments(mean, deviation, run)

    def _cut(self, x: Tensor) -> dict[str, int]:
        block = triton.next_power_of_2(x.shape[1])
        return dict(C=x.shape[1], BC=block, BR=max(self.launch.tile // block, 1), num_warps=self.launch.warps)

    def _runs(self, x: Tensor) -> tuple[int, int]:
        """Rows of a run, a multiple of what a program holds at a time, and the number of runs in an image."""
        rows, step = _rows(x), self._cut(x)["BR"]
        wanted = min(max(self.launch.programs // len(x), 1), self.launch.longest)
        run = triton.cdiv(triton.cdiv(rows, wanted), step) * step
        return run, triton.cdiv(rows, run)

    @staticmethod
    def _tiles(x: Tensor, cut: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(_rows(x), cut["BR"]), len(x)

    @staticmethod
    def _merging(norm: Norm, channels: int, runs: int) -> dict[str, int]:
        block = triton.next_power_of_2(channels // norm.groups)
        return dict(GROUPS=norm.groups, BS=triton.next_power_of_2(runs), BW=block)


def _rows(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def _dense(x: Tensor) -> Tensor:
    """The kernels count pixels themselves; usually x is channels-last already and nothing happens."""
    return x.contiguous(memory_format=torch.channels_last)
