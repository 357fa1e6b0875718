"""The pieces of a Stable Diffusion encoder, each with its forward pass and the gradient to its input.

The weights are frozen. So a convolution saves nothing, and the only things kept for the backward pass are the inputs
of the normalizations and, in attention, the projections and the probabilities. A piece's `forward` puts what it needs
on a tape, its `backward` takes it off again: the pieces of a network run backwards in opposite order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .arithmetic import Arithmetic, Moments, Norm, wide


class Activation(NamedTuple):
    """What passes between pieces: the value is x + bias."""

    x: Tensor  # [B,C,H,W], channels-last
    bias: Tensor | None = None  # [C]; None: nothing pending
    moments: Moments | None = None
    """Of the value, if whoever wrote x has summed them up."""

    def plus(self, bias: Tensor) -> Tensor:
        """The pending bias and another one."""
        return bias if self.bias is None else self.bias + bias


class Tape:
    """A stack of what the backward pass needs: tensors, and shapes. Without `recording` it forgets everything."""

    def __init__(self, recording: bool, entries: list[Any] | None = None) -> None:
        self.recording, self.entries = recording, entries or []

    def save(self, *entries: Any) -> None:
        if self.recording:
            self.entries.append(entries)

    def take(self) -> tuple[Any, ...]:
        return self.entries.pop()


class Piece(Protocol):
    """A frozen map of activations."""

    def forward(self, h: Activation, tape: Tape) -> Activation: ...

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Gradient with respect to the value that came out -> with respect to the value that went in."""


class Convolution:
    """Zero-padded convolution without groups or dilation; its bias stays pending.

    Args:
        weight: [O,I,k,k].  bias: [O].  stride: of both axes.  padding: of all four sides.
        flipped: whether the input gradient is computed as a convolution with the kernel turned round (stride 1 only)
            rather than as a transposed one: the same sums by other kernels, for a second copy of the weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int, flipped: bool = False) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias, self.stride, self.padding = bias, stride, padding
        self.turned = None
        if flipped and stride == 1 and 2 * padding == weight.shape[-1] - 1:
            self.turned = weight.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)

    def input_gradient(self, gradient: Tensor, size: tuple[int, int]) -> Tensor:
        """[B,O,h,w] -> [B,I,*size]."""
        if self.turned is not None:
            return F.conv2d(gradient, self.turned, None, 1, self.padding)
        # Of the input only shape and layout are asked for. A view of one number would have any shape and need no memory, but
        # counts as not channels-last, and PyTorch would bring the gradient into that layout and back.
        shape = len(gradient), self.weight.shape[1], *size
        shaped = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
        step, pad = [self.stride] * 2, [self.padding] * 2
        wanted = [True, False, False]
        return torch.ops.aten.convolution_backward(
            gradient, shaped, self.weight, None, step, pad, [1, 1], False, [0, 0], 1, wanted
        )[0]


class Pointwise:
    """A 1 x 1 convolution, as a matrix product over the pixels; its bias stays pending."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.flatten(1), bias

    def __call__(self, x: Tensor) -> Tensor:
        return image(F.linear(tokens(x), self.weight), x.shape[2:])

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return image(tokens(gradient) @ self.weight, gradient.shape[2:])

    def of(self, h: Activation) -> Activation:
        """The map of an activation: being linear, it takes the pending bias along."""
        passed = self.bias if h.bias is None else self.bias + self.weight.to(h.bias.dtype) @ h.bias
        return Activation(self(h.x), passed)


class Normalization:
    """GroupNorm, with SiLU or without. Saves its input and the statistics."""

    def __init__(self, norm: Norm, arithmetic: Arithmetic) -> None:
        self.norm, self.arithmetic = norm, arithmetic

    def forward(self, h: Activation, tape: Tape) -> Tensor:
        rows = h.x.shape[2] * h.x.shape[3]
        moments = self.arithmetic.moments(h.x, h.bias) if h.moments is None else h.moments
        statistics = self.arithmetic.statistics(moments, rows, self.norm)
        tape.save(h.x, h.bias, statistics)
        return self.arithmetic.normalize(h.x, h.bias, statistics, self.norm)

    def backward(self, gradient: Tensor, tape: Tape, further: Tensor | None = None) -> Tensor:
        """`further`: a gradient that reaches the input by another way, added on the fly."""
        return self.arithmetic.input_gradient(gradient, *tape.take(), self.norm, further)


class First:
    """The convolution at the entrance. Pictures have three channels, tensor cores want eight: the others are zeros."""

    multiple = 8

    def __init__(self, weight: Tensor, bias: Tensor, padding: int, flipped: bool) -> None:
        self.channels = weight.shape[1]
        missing = -self.channels % self.multiple
        self.convolution = Convolution(F.pad(weight, (0, 0, 0, 0, 0, missing)), bias, 1, padding, flipped)
        self.padded = self.channels + missing

    def forward(self, pixels: Tensor, tape: Tape) -> Activation:
        """[B,3,H,W] of any layout and type."""
        b, _, height, width = pixels.shape
        x = self.convolution.weight.new_zeros(b, height, width, self.padded).permute(0, 3, 1, 2)
        x[:, : self.channels].copy_(pixels)
        tape.save((height, width))
        return Activation(self.convolution(x), self.convolution.bias)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        (size,) = tape.take()
        return self.convolution.input_gradient(gradient, size)[:, : self.channels]


class Residual:
    """x -> skip(x) + conv2(norm2(conv1(norm1(x)))), SiLU in both norms."""

    def __init__(
        self,
        norms: tuple[Normalization, Normalization],
        convolutions: tuple[Convolution, Convolution],
        skip: Pointwise | None,
    ) -> None:
        self.norms, self.convolutions, self.skip = norms, convolutions, skip
        self.arithmetic = norms[0].arithmetic

    def forward(self, h: Activation, tape: Tape) -> Activation:
        (norm1, norm2), (conv1, conv2) = self.norms, self.convolutions
        branch = Activation(conv1(norm1.forward(h, tape)), conv1.bias)
        inner = conv2(norm2.forward(branch, tape))
        skipped = h if self.skip is None else self.skip.of(h)
        total, moments = self.arithmetic.add(skipped.x, inner, skipped.plus(conv2.bias))
        return Activation(total, moments=moments)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        (norm1, norm2), (conv1, conv2) = self.norms, self.convolutions
        size = gradient.shape[2:]
        inner = norm2.backward(conv2.input_gradient(gradient, size), tape)
        skipped = gradient if self.skip is None else self.skip.input_gradient(gradient)
        return norm1.backward(conv1.input_gradient(inner, size), tape, skipped)


class Downsampling:
    """A convolution of stride 2 that pads only below and to the right.

    Args:
        widened: whether the padding is written into the kernel, as a first row and column of zeros under symmetric
            padding: 16 / 9 of the arithmetic instead of a padded copy of the input and a cropped one of the gradient.
    """

    def __init__(self, weight: Tensor, bias: Tensor, widened: bool) -> None:
        self.widened = widened
        self.convolution = Convolution(F.pad(weight, (1, 0, 1, 0)) if widened else weight, bias, 2, int(widened))

    def forward(self, h: Activation, tape: Tape) -> Activation:
        tape.save(h.x.shape[2:])
        x = h.x if h.bias is None else h.x + h.bias[:, None, None].to(h.x.dtype)  # not behind a residual block
        return Activation(self.convolution(x if self.widened else F.pad(x, (0, 1, 0, 1))), self.convolution.bias)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        ((height, width),) = tape.take()
        if self.widened:
            return self.convolution.input_gradient(gradient, (height, width))
        padded = self.convolution.input_gradient(gradient, (height + 1, width + 1))
        return padded[..., :height, :width].contiguous(memory_format=torch.channels_last)


class Attention:
    """Self-attention of one head as wide as all channels, by plain products; x plus its output.

    For such a width the fused kernels' backward is slower than writing the probabilities out. The scale is part of the
    queries' weights, so that the scores stay small in float16; softmax accumulates in float32.

    Args:
        projection: weight [3C,C] and bias [3C] of queries, keys and values.  output: the last linear map.
    """

    def __init__(self, norm: Normalization, projection: tuple[Tensor, Tensor], output: Pointwise) -> None:
        self.norm, self.output, self.arithmetic = norm, output, norm.arithmetic
        weight, bias = projection
        scale = weight.new_ones(len(bias), dtype=wide(weight.dtype))
        scale[: len(bias) // 3] = (len(bias) // 3) ** -0.5
        self.weight, self.bias = (weight * scale[:, None]).to(weight.dtype), (bias * scale).to(weight.dtype)

    def forward(self, h: Activation, tape: Tape) -> Activation:
        normalized = self.norm.forward(h, tape)
        projected = F.linear(tokens(normalized), self.weight, self.bias)
        q, k, v = projected.chunk(3, -1)  # [B,L,C] each
        probabilities = torch.softmax(q @ k.transpose(1, 2), -1)
        tape.save(projected, probabilities)
        mixed = image(probabilities @ v, h.x.shape[2:])
        total, moments = self.arithmetic.add(h.x, self.output(mixed), h.plus(self.output.bias))
        return Activation(total, moments=moments)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        projected, p = tape.take()
        q, k, v = projected.chunk(3, -1)
        mixed = tokens(self.output.input_gradient(gradient))
        scores = torch.ops.aten._softmax_backward_data(mixed @ v.transpose(1, 2), p, -1, p.dtype)
        to_q, to_k, to_v = scores @ k, scores.transpose(1, 2) @ q, p.transpose(1, 2) @ mixed
        normalized = torch.cat([to_q, to_k, to_v], -1) @ self.weight
        return self.norm.backward(image(normalized, gradient.shape[2:]), tape, gradient)


class Last:
    """Normalization and the convolution to the posterior's parameters, in the type that sums are kept in."""

    def __init__(self, norm: Normalization, convolution: Convolution) -> None:
        self.norm, self.convolution = norm, convolution

    def forward(self, h: Activation, tape: Tape) -> Tensor:
        y = self.convolution(self.norm.forward(h, tape))
        return y.to(wide(y.dtype)) + self.convolution.bias[:, None, None]

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        return self.norm.backward(self.convolution.input_gradient(gradient, gradient.shape[2:]), tape)


def tokens(x: Tensor) -> Tensor:
    """[B,C,H,W] channels-last -> [B,HW,C], a view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def image(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The opposite of `tokens`."""
    return x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)
