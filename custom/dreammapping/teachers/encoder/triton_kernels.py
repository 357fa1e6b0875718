"""The kernels of triton_arithmetic.py: group normalization over channels-last tensors, forward and backward.

All of it is bound by memory, so the kernels are ordered by what they read and write. A sum over the pixels of an image
is cut into runs of rows: there are too few images and groups to fill a GPU with one program each. Each program sums its
run channel by channel, a small second kernel puts the runs together; nothing is added atomically, so the result is the
same every time. A kernel that reads a tensor for the second time does it from the end: what the first pass read last
is still in the L2 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

COUNTS = ("rows", "run", "runs")
"""Not specialized: a count of one would arrive as a constant, which has no type to convert."""


@triton.jit
def _load(x, other, shift, at, mask, ADDS: tl.constexpr):
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
    return value + shift


@triton.jit(do_not_specialize=COUNTS)
def moments(
    x, other, bias, total, mean, deviation, rows, run,
    STEPS: tl.constexpr, STAGES: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, BIASED: tl.constexpr, ADDS: tl.constexpr,
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
    shift = tl.load(bias + channel, mask=inside, other=0.0)[None, :] if BIASED else 0.0
    pivot = _load(x, other, shift, start * C + channel[None, :], inside[None, :], ADDS)
    first = tl.zeros([BR, BC], tl.float32)
    second = tl.zeros([BR, BC], tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        row = start + step * BR + tl.arange(0, BR)
        mask = (row < stop)[:, None] & inside[None, :]
        at = row[:, None] * C + channel[None, :]
        value = _load(x, other, shift, at, mask, ADDS)
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


@triton.jit(do_not_specialize=COUNTS)
def merge_moments(
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
def _constants(
    bias, statistics, weight, offset, channel, inside, picture,
    C: tl.constexpr, GROUPS: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Of each channel: what to subtract from x and then to multiply by, and the normalization's weight and offset."""
    entry = statistics + (picture * GROUPS + channel // (C // GROUPS)) * 2
    center = tl.load(entry, mask=inside, other=0.0)
    if BIASED:
        center -= tl.load(bias + channel, mask=inside, other=0.0)
    scale = tl.load(entry + 1, mask=inside, other=0.0)
    gain = tl.load(weight + channel, mask=inside, other=0.0)
    shift = tl.load(offset + channel, mask=inside, other=0.0)
    return center[None, :], scale[None, :], gain[None, :], shift[None, :]


@triton.jit
def _slope(gradient, unit, gain, shift, at, mask, SILU: tl.constexpr):
    """Gradient with respect to the standardized value."""
    slope = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        z = unit * gain + shift
        sigmoid = tl.sigmoid(z)
        slope *= sigmoid * (1.0 + z * (1.0 - sigmoid))
    return slope * gain


@triton.jit(do_not_specialize=COUNTS)
def normalize(
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
    center, scale, gain, shift = _constants(
        bias, statistics, weight, offset, channel, inside, picture, C, GROUPS, BIASED
    )
    z = (tl.load(x + base + at, mask=mask, other=0.0).to(tl.float32) - center) * scale * gain + shift
    if SILU:
        z *= tl.sigmoid(z)
    tl.store(y + base + at, z.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def gradient_sums(
    gradient, x, bias, statistics, weight, offset, plain, along, rows, run,
    STEPS: tl.constexpr, STAGES: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    BIASED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    part, picture = tl.program_id(0), tl.program_id(1)
    base = picture.to(tl.int64) * rows * C
    x += base
    gradient += base
    channel = tl.arange(0, BC)
    inside = channel < C
    center, scale, gain, shift = _constants(
        bias, statistics, weight, offset, channel, inside, picture, C, GROUPS, BIASED
    )
    start = part * run
    stop = tl.minimum(start + run, rows)
    first = tl.zeros([BR, BC], tl.float32)
    second = tl.zeros([BR, BC], tl.float32)
    for step in tl.range(STEPS, num_stages=STAGES):
        row = start + step * BR + tl.arange(0, BR)
        mask = (row < stop)[:, None] & inside[None, :]
        at = row[:, None] * C + channel[None, :]
        unit = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - center) * scale
        slope = _slope(gradient, unit, gain, shift, at, mask, SILU)
        first += slope  # zero where masked, as the gradient is
        second += slope * unit
    at = (picture * tl.num_programs(0) + part) * C + channel
    tl.store(plain + at, tl.sum(first, 0), mask=inside)
    tl.store(along + at, tl.sum(second, 0), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def merge_sums(
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


@triton.jit(do_not_specialize=COUNTS)
def input_gradient(
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
    center, scale, gain, shift = _constants(
        bias, statistics, weight, offset, channel, inside, picture, C, GROUPS, BIASED
    )
    unit = (tl.load(x + base + at, mask=mask, other=0.0).to(tl.float32) - center) * scale
    slope = _slope(gradient + base, unit, gain, shift, at, mask, SILU)
    entry = means + (picture * GROUPS + channel // (C // GROUPS)) * 2
    plain = tl.load(entry, mask=inside, other=0.0)[None, :]
    along = tl.load(entry + 1, mask=inside, other=0.0)[None, :]
    result = (slope - plain - unit * along) * scale
    if ADDS:
        result += tl.load(further + base + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + base + at, result.to(y.dtype.element_ty), mask=mask)
