"""A small network with one hidden layer in one kernel: what lies between its layers never reaches memory.

For a field's heads of 64 neurons that is nearly all the traffic. Products run on tensor cores as three of TF32, which
is float32's precision up to the order of sums. The backward pass computes the hidden layer again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

_ROWS = 128  # of a block forward
_ROWS_BACK = 32  # and backward, which holds more; with 64 it runs out of registers
_PROGRAMS = 1024  # of the backward pass; each sums the weights' gradients over its blocks
_OUTPUTS = 16  # columns of the last product, the fewest a tensor core takes; those of the layer are the first ones


@triton.jit
def _rows(pointer, n, inside, row, column, WIDTH: tl.constexpr, USED: tl.constexpr):
    """Rows n of a matrix whose first USED of WIDTH columns there are."""
    c = tl.arange(0, WIDTH)
    places = n.to(tl.int64)[:, None] * row + c.to(tl.int64)[None, :] * column
    return tl.load(pointer + places, mask=inside[:, None] & (c < USED)[None, :], other=0.0)


@triton.jit
def _last_layer(w2, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH: tl.constexpr):
    o, h = tl.arange(0, WIDTH), tl.arange(0, HIDDEN)
    return tl.load(w2 + o[:, None] * HIDDEN + h[None, :], mask=(o < OUTPUTS)[:, None], other=0.0)


@triton.jit
def _forward(
    x, w1, w2, out, count, row, column,
    INPUTS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i, h, o = tl.arange(0, INPUTS), tl.arange(0, HIDDEN), tl.arange(0, WIDTH)
    inputs = _rows(x, n, n < count, row, column, INPUTS, INPUTS)
    first = tl.load(w1 + h[:, None] * INPUTS + i[None, :])
    hidden = tl.maximum(tl.dot(inputs, tl.trans(first), input_precision="tf32x3"), 0.0)
    values = tl.dot(hidden, tl.trans(_last_layer(w2, HIDDEN, OUTPUTS, WIDTH)), input_precision="tf32x3")
    tl.store(out + n[:, None] * OUTPUTS + o[None, :], values, mask=(n < count)[:, None] & (o < OUTPUTS)[None, :])


@triton.jit
def _backward(
    x, w1, w2, g, gx, gw1, gw2, count, blocks, row, column, g_row, g_column,
    INPUTS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    i, h, o = tl.arange(0, INPUTS), tl.arange(0, HIDDEN), tl.arange(0, WIDTH)
    first, last = tl.load(w1 + h[:, None] * INPUTS + i[None, :]), _last_layer(w2, HIDDEN, OUTPUTS, WIDTH)
    total1 = tl.zeros([HIDDEN, INPUTS], dtype=tl.float32)
    total2 = tl.zeros([WIDTH, HIDDEN], dtype=tl.float32)
    for block in range(blocks):
        n = (program * blocks + block) * ROWS + tl.arange(0, ROWS)
        inside = n < count
        inputs = _rows(x, n, inside, row, column, INPUTS, INPUTS)
        hidden = tl.dot(inputs, tl.trans(first), input_precision="tf32x3")
        here = _rows(g, n, inside, g_row, g_column, WIDTH, OUTPUTS)
        total2 += tl.dot(tl.trans(here), tl.maximum(hidden, 0.0), input_precision="tf32x3")
        slope = tl.where(hidden > 0, tl.dot(here, last, input_precision="tf32x3"), 0.0)
        total1 += tl.dot(tl.trans(slope), inputs, input_precision="tf32x3")
        into = tl.dot(slope, first, input_precision="tf32x3")
        tl.store(gx + n.to(tl.int64)[:, None] * INPUTS + i[None, :], into, mask=inside[:, None])
    tl.store(gw1 + program * HIDDEN * INPUTS + h[:, None] * INPUTS + i[None, :], total1)
    tl.store(gw2 + (program * OUTPUTS + o[:, None]) * HIDDEN + h[None, :], total2, mask=(o < OUTPUTS)[:, None])


def fits(layers: nn.Sequential, x: Tensor) -> bool:
    """Whether the kernels can be these layers on inputs [N, I]: two without bias and a ReLU between, float32."""
    linear = [layer for layer in layers if type(layer) is nn.Linear]
    if len(layers) != 3 or len(linear) != 2 or x.dtype != torch.float32 or len(x) * 4 >= 2**31:
        return False
    first, last = linear
    sizes = (first.in_features, first.out_features)
    return (
        first.bias is None
        and last.bias is None
        and all(size in (16, 32, 64, 128) for size in sizes)
        and last.out_features <= 4
        and first.weight.dtype == last.weight.dtype == torch.float32
    )


class _TwoLayers(torch.autograd.Function):
    """relu(x w1^T) w2^T. Differentiated twice, its gradient is PyTorch's operations."""

    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        ctx.save_for_backward(x, w1, w2)
        out = x.new_empty(len(x), len(w2))
        if len(x) > 0:
            grid = (triton.cdiv(len(x), _ROWS),)
            _forward[grid](x, w1.contiguous(), w2.contiguous(), out, len(x), *x.stride(), **_sizes(w1, w2, _ROWS))
        return out

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w1, w2 = ctx.saved_tensors
        if torch.is_grad_enabled() or len(x) == 0:  # someone wants the gradient of the gradient
            hidden = x @ w1.t()
            slope = (g @ w2) * (hidden > 0)
            return slope @ w1, slope.t() @ x, g.t() @ hidden.relu()
        blocks = triton.cdiv(triton.cdiv(len(x), _ROWS_BACK), _PROGRAMS)  # of each program
        programs = triton.cdiv(len(x), _ROWS_BACK * blocks)
        gx = torch.empty_like(x, memory_format=torch.contiguous_format)
        gw1, gw2 = w1.new_empty(programs, *w1.shape), w2.new_empty(programs, *w2.shape)
        numbers = (len(x), blocks, *x.stride(), *g.stride())
        sizes = _sizes(w1, w2, _ROWS_BACK)
        _backward[(programs,)](x, w1.contiguous(), w2.contiguous(), g, gx, gw1, gw2, *numbers, **sizes, num_stages=1)
        return gx, gw1.sum(0), gw2.sum(0)


def _sizes(w1: Tensor, w2: Tensor, rows: int) -> dict[str, int]:
    return {
        "INPUTS": w1.shape[1],
        "HIDDEN": w1.shape[0],
        "OUTPUTS": w2.shape[0],
        "ROWS": rows,
        "WIDTH": _OUTPUTS,
    }


def two_layers(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """relu(x w1^T) w2^T for x [N, I], w1 [H, I], w2 [O, H]; see `fits`."""
    return _TwoLayers.apply(x, w1, w2)
