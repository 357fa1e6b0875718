"""Less memory for more time: a batch in slices, with the result and the gradient of the whole.

Encoding. What takes memory is what the VAE's encoder keeps for its backward, which is proportional to the images at
work. But the latents' gradient is known before that backward starts, since the residual is detached. So only one slice's
graph has to exist at a time: all slices but the last are encoded without graph, and once more, with it, when their
gradient has come. The last slice's backward runs first, so its graph can stay. The time is one more forward of all slices
but the last; checkpointing inside the encoder would repeat all of it and keep more.

The network runs without graph, so there slices only cost the device's efficiency at smaller batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from ..processes import Rows


class Encode(Protocol):
    """See protocol.Teacher.encode."""

    def __call__(self, rgb: Tensor, generator: torch.Generator, rows: Rows | None = None) -> Tensor: ...


def check_slice(size: int, where: str) -> int:
    """`size`; ConfigError unless it is 0 (no slices) or the images of a slice."""
    if size < 0:
        raise ConfigError(f"{where} is {size}; it must be the number of images in a slice, or 0 for the whole batch")
    return size


def encode_in_slices(encode: Encode, rgb: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """`encode(rgb, generator)` for rgb [B,3,H,W], `size` images at a time; 0: all at once.

    The same random numbers, latents and gradient, up to the rounding of the device's kernels at another batch size.
    """
    count = len(rgb)
    if not 0 < size < count:
        return encode(rgb, generator)
    rows, state = Rows.of_process(count), generator.get_state()
    start = (count - 1) // size * size

    def encode_again(images: Tensor, first: int) -> Tensor:
        same = torch.Generator()
        same.set_state(state)
        return encode(images, same, rows.part(first, first + len(images)))

    earlier = _EncodedTwice.apply(rgb[:start], encode_again, size)
    return torch.cat([earlier, encode(rgb[start:], generator, rows.part(start, count))])


class _EncodedTwice(torch.autograd.Function):
    """Slices encoded without graph, and with it in the backward."""

    @staticmethod
    def forward(ctx: Any, rgb: Tensor, encode: Callable[[Tensor, int], Tensor], size: int) -> Tensor:
        ctx.save_for_backward(rgb)
        ctx.encode, ctx.size = encode, size
        return torch.cat([encode(part, i * size) for i, part in enumerate(rgb.split(size))])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rgb,) = ctx.saved_tensors
        found = torch.empty_like(rgb)
        for first in range(0, len(rgb), ctx.size):
            part = slice(first, first + ctx.size)
            images = rgb[part].detach().requires_grad_()
            with torch.enable_grad():
                latents = ctx.encode(images, first)
            found[part] = torch.autograd.grad(latents, images, gradient[part])[0]
        return found, None, None


def in_slices(call: Callable[..., Tensor], size: int, *batches: Tensor) -> Tensor:
    """`call(*batches)` for tensors [B, ...], `size` rows at a time; 0: all at once."""
    if not 0 < size < len(batches[0]):
        return call(*batches)
    return torch.cat([call(*parts) for parts in zip(*(batch.split(size) for batch in batches))])
