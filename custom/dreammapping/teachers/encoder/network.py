"""A diffusers AutoencoderKL's encoder, taken apart into pieces and run channels-last by one autograd function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arithmetic import Arithmetic, Norm, TorchArithmetic, wide
from .pieces import (
    Activation,
    Attention,
    Convolution,
    Downsampling,
    First,
    Last,
    Normalization,
    Piece,
    Pointwise,
    Residual,
    Tape,
)

UNIT = 1.0
"""Largest absolute value of the gradient that enters the backward pass, whatever the loss's scale: of float16's range
it leaves 2^16 above and 2^24 below."""


class Unsupported(Exception):
    """The encoder has a part that this executor does not know; the message names it. Not for users: see build."""


@dataclass(frozen=True)
class Layout:
    """Choices that change speed only; benchmarks/encoder.py measures them."""

    widened_downsampling: bool = True
    """See pieces.Downsampling."""
    flipped_gradients: bool = True
    """See pieces.Convolution."""


class EncoderNetwork:
    """The pieces of an encoder in order, forward and backward. Holds copies of the weights.

    Raises:
        Unsupported: see there.
    """

    def __init__(self, vae: Any, arithmetic: Arithmetic | None = None, layout: Layout = Layout()) -> None:
        self.arithmetic, self.layout = arithmetic or TorchArithmetic(), layout
        encoder = vae.encoder
        self.first = self._first(encoder.conv_in)
        self.pieces: list[Piece] = []
        for block in encoder.down_blocks:
            self._down_block(block)
        self._middle(encoder.mid_block)
        _require(isinstance(encoder.conv_act, nn.SiLU), f"activation {type(encoder.conv_act).__name__}")
        self.last = self._last(encoder, getattr(vae, "quant_conv", None))

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        """[B,3,H,W] in [-1,1] -> mean and log-variance [B,2C,h,w], float32 at least."""
        h: Activation = self.first.forward(pixels, tape)
        for piece in self.pieces:
            h = piece.forward(h, tape)
        return self.last.forward(h, tape)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Gradient with respect to the output -> to the pixels [B,3,H,W], float32 at least; finite if both are.

        The network is linear in the gradient, so it runs at a scale at which float16 neither overflows nor loses
        small values. The scale is found on the device: nothing waits for it.
        """
        weight = self.first.convolution.weight
        gradient = gradient.to(wide(weight.dtype))
        largest = gradient.abs().amax().clamp(min=torch.finfo(gradient.dtype).tiny)
        scale = UNIT / largest
        g = (gradient * scale).to(weight.dtype, memory_format=torch.channels_last)
        g = self.last.backward(g, tape)
        for piece in reversed(self.pieces):
            g = piece.backward(g, tape)
        return self.first.backward(g, tape).to(gradient.dtype) * (largest / UNIT)

    def _first(self, module: nn.Module) -> First:
        _check_convolution(module, 3, 1)
        return First(module.weight.detach(), _bias(module), module.padding[0], self.layout.flipped_gradients)

    def _down_block(self, block: nn.Module) -> None:
        _require(type(block).__name__ == "DownEncoderBlock2D", f"block {type(block).__name__}")
        self.pieces += [self._residual(resnet) for resnet in block.resnets]
        for module in block.downsamplers or []:
            _require(type(module).__name__ == "Downsample2D" and module.use_conv, f"layer {type(module).__name__}")
            _require(getattr(module, "norm", None) is None, "a normalization in a downsampling layer")
            _check_convolution(module.conv, 3, 2)
            _require(module.padding == 0, f"downsampling with padding {module.padding}")
            widened = self.layout.widened_downsampling
            self.pieces.append(Downsampling(module.conv.weight.detach(), _bias(module.conv), widened))

    def _middle(self, block: nn.Module) -> None:
        _require(type(block).__name__ == "UNetMidBlock2D", f"block {type(block).__name__}")
        first, *others = block.resnets
        self.pieces.append(self._residual(first))
        for attention, resnet in zip(block.attentions, others):
            if attention is not None:
                self.pieces.append(self._attention(attention))
            self.pieces.append(self._residual(resnet))

    def _residual(self, module: nn.Module) -> Residual:
        _require(type(module).__name__ == "ResnetBlock2D", f"block {type(module).__name__}")
        _require(isinstance(module.nonlinearity, nn.SiLU), f"activation {type(module.nonlinearity).__name__}")
        _require(module.time_emb_proj is None, "a residual block with a time embedding")
        _require(module.upsample is None and module.downsample is None, "a residual block that resamples")
        _require(module.output_scale_factor == 1, f"output_scale_factor {module.output_scale_factor}")
        norms = self._norm(module.norm1, silu=True), self._norm(module.norm2, silu=True)
        convolutions = self._convolution(module.conv1), self._convolution(module.conv2)
        skip = module.conv_shortcut
        return Residual(norms, convolutions, None if skip is None else self._pointwise(skip))

    def _attention(self, module: nn.Module) -> Attention:
        _require(type(module).__name__ == "Attention" and module.heads == 1, "attention with several heads")
        _require(getattr(module, "spatial_norm", None) is None, "spatial normalization")
        _require(getattr(module, "norm_q", None) is None, "normalized queries")
        _require(bool(module.residual_connection), "attention without a residual connection")
        _require(module.rescale_output_factor == 1, f"rescale_output_factor {module.rescale_output_factor}")
        maps = module.to_q, module.to_k, module.to_v
        weight = torch.cat([m.weight.detach() for m in maps])
        output = Pointwise(module.to_out[0].weight.detach(), _bias(module.to_out[0]))
        projection = weight, torch.cat([_bias(m) for m in maps])
        return Attention(self._norm(module.group_norm, silu=False), projection, output)

    def _last(self, encoder: nn.Module, quant: nn.Module | None) -> Last:
        """The 1 x 1 convolution to the posterior's parameters is multiplied into the one before it."""
        norm, module = self._norm(encoder.conv_norm_out, silu=True), encoder.conv_out
        _check_convolution(module, 3, 1)
        weight, bias = module.weight.detach(), _bias(module)
        if quant is not None:
            _check_convolution(quant, 1, 1)
            mixing = quant.weight.detach().flatten(1).to(bias.dtype)
            bias = mixing @ bias + _bias(quant)
            weight = torch.einsum("po,oikl->pikl", mixing, weight.to(bias.dtype)).to(weight.dtype)
        return Last(norm, Convolution(weight, bias, 1, module.padding[0], self.layout.flipped_gradients))

    def _norm(self, module: nn.Module, silu: bool) -> Normalization:
        _require(isinstance(module, nn.GroupNorm) and module.affine, f"normalization {type(module).__name__}")
        weight, offset = (v.detach().to(wide(v.dtype)) for v in (module.weight, module.bias))
        return Normalization(Norm(weight, offset, module.num_groups, module.eps, silu), self.arithmetic)

    def _convolution(self, module: nn.Module) -> Convolution:
        _check_convolution(module, 3, 1)
        _require(module.padding == (1, 1), f"a convolution with padding {module.padding}")
        return Convolution(module.weight.detach(), _bias(module), 1, 1, self.layout.flipped_gradients)

    def _pointwise(self, module: nn.Module) -> Pointwise:
        _check_convolution(module, 1, 1)
        return Pointwise(module.weight.detach(), _bias(module))


class FrozenEncoder:
    """What `vae.encode` computes, differentiable with respect to the pixels only.

    Moves no weights: build a new one after the VAE has moved. Gradients of gradients are not defined.
    """

    def __init__(self, vae: Any, arithmetic: Arithmetic | None = None, layout: Layout = Layout()) -> None:
        """Raises Unsupported, see there."""
        self.vae, self.network = vae, EncoderNetwork(vae, arithmetic, layout)

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1] -> mean and log-variance [B,2C,h,w], float32 at least."""
        if getattr(self.vae, "use_slicing", False) and len(pixels) > 1:
            return torch.cat([self.run(one) for one in pixels.split(1)])
        return self.run(pixels)

    def run(self, pixels: Tensor) -> Tensor:
        with torch.cuda.device_of(pixels):  # Triton launches on the current device
            return _Encode.apply(pixels, self.network, torch.is_grad_enabled() and pixels.requires_grad)


class _Encode(torch.autograd.Function):
    """The network as one step of autograd: a tape of our own, its tensors in autograd's keeping."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, network: EncoderNetwork, recording: bool) -> Tensor:
        tape = Tape(recording)
        result = network.forward(pixels, tape)
        ctx.network, ctx.dtype = network, pixels.dtype
        ctx.shapes = pack(ctx, tape)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.network.backward(gradient, unpack(ctx)).to(ctx.dtype), None, None


def pack(ctx: Any, tape: Tape) -> list[list[Any]]:
    """Save the tape's tensors with autograd; what is left of the tape."""
    ctx.save_for_backward(*[value for entry in tape.entries for value in entry if isinstance(value, Tensor)])
    return [[_SAVED if isinstance(value, Tensor) else value for value in entry] for entry in tape.entries]


def unpack(ctx: Any) -> Tape:
    """A fresh tape, so that a graph that is kept can run backwards again."""
    tensors = iter(ctx.saved_tensors)
    entries = [tuple(next(tensors) if value is _SAVED else value for value in entry) for entry in ctx.shapes]
    return Tape(True, entries)


_SAVED = object()


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise Unsupported(what)


def _check_convolution(module: nn.Module, kernel: int, stride: int) -> None:
    _require(isinstance(module, nn.Conv2d), f"layer {type(module).__name__}")
    found = (module.kernel_size, module.stride, module.dilation, module.groups, module.padding_mode)
    expected = ((kernel, kernel), (stride, stride), (1, 1), 1, "zeros")
    _require(found == expected and not isinstance(module.padding, str), f"the convolution {module}")
    _require(stride == 2 or 2 * module.padding[0] == kernel - 1, f"the convolution {module}")


def _bias(module: nn.Module) -> Tensor:
    dtype = wide(module.weight.dtype)
    if module.bias is None:
        return module.weight.new_zeros(len(module.weight), dtype=dtype)
    return module.bias.detach().to(dtype)
