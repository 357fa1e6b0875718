"""The networks of a training step without values, and the memory that they need at work: directly, and in recordings.

On CUDA the encoder and the U-Net are called directly twice and then recorded (replay.py). A recording keeps its working
memory for good, so that of a direct call comes and goes and that of the recordings adds up: the encoder's forward and
backward have memory of their own for each number of images, everything without a backward shares one. Most is needed
once all recordings are made, as torch's cache is emptied before each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..processes import Rows
from ..teachers.diffusers_teacher import use_plain_vae_attention
from ..teachers.encoder import FrozenEncoder
from ..teachers.encoder.shapes import ShapeArithmetic
from ..teachers.slices import encode_in_slices, in_slices
from .live_memory import LiveBytes, peak_bytes

TOKENS = 77
"""Length of a prompt's embedding, CLIP's."""


@dataclass(frozen=True)
class Setup:
    """What the memory of a run depends on."""

    views: int
    """On one GPU."""
    height: int
    width: int
    """Of the rendered pictures, pixels."""
    gaussians: int
    """As many as there may be."""
    scene_bytes: int
    """Parameters that the system's optimizer trains, for so many Gaussians."""
    prompts: int = 2
    """Embeddings for which the network is asked at once: 2 with classifier-free guidance, 4 with Perp-Neg."""
    further_views: tuple[int, ...] = ()
    """Other, smaller numbers of views that the run comes by."""
    encode_slice: int = 0
    unet_slice: int = 0
    cpu_offload: bool = False
    fast_encoder: bool = False
    """The VAE's encoder by kernels of our own (teachers/encoder), where weights are not offloaded."""
    cuda_graphs: bool = False
    """Encoder, U-Net and operator are recorded, as far as the other options allow it."""
    tiny_encoder: bool = False
    """The teacher's tiny encoder encodes in all steps. (In some: the VAE's, which needs more, decides.)"""

    @property
    def own_encoder(self) -> bool:
        return self.fast_encoder and not self.cpu_offload

    @property
    def records_network(self) -> bool:
        return self.cuda_graphs and not self.cpu_offload

    @property
    def records_encoder(self) -> bool:
        return self.records_network and self.own_encoder and not self.encode_slice and not self.tiny_encoder


class ShadowStep:
    """The networks of a DiffusersTeacher and what the loss trains (or None), in `dtype` and on the meta device."""

    def __init__(self, teacher: Any, operator: nn.Module | None, setup: Setup, dtype: torch.dtype) -> None:
        self.teacher, self.setup, self.dtype = teacher, setup, dtype
        self.vae = _without_values(teacher.vae, teacher.dtype_of_vae(dtype))
        use_plain_vae_attention(self.vae)  # as on CUDA
        self.denoiser = _denoiser_without_values(teacher, dtype, setup.cpu_offload)
        # Not in training mode, in which several processes would exchange their statistics.
        self.operator = None if operator is None else copy.deepcopy(operator).to("meta", torch.float32).eval()
        tiny = teacher.tiny_encoder
        self.tiny = None if tiny is None else _without_values(tiny.model, dtype)
        with LiveBytes() as copies:
            self.encoder = FrozenEncoder(self.vae, ShapeArithmetic()) if setup.own_encoder else self._diffusers
        self.copied = copies.now
        """Bytes of weights that the encoder has in another layout, beside the VAE."""

    def direct_bytes(self) -> int:
        """Most bytes at once in a step outside of the recordings, with what goes into and out of these."""
        return peak_bytes(self._step)

    def recorded_bytes(self) -> int:
        """Bytes that the recordings keep."""
        setup = self.setup
        shared = peak_bytes(self._ask, setup.views) if setup.records_network else 0
        if setup.cuda_graphs and self.operator is not None:
            shared = max(shared, peak_bytes(self._learn, self._latents(setup.views)))
        batches = (setup.views, *setup.further_views) if setup.records_encoder else ()
        return shared + sum(peak_bytes(self._encode_and_back, views) for views in batches)

    def _step(self) -> None:
        setup, teacher = self.setup, self.teacher
        encoder = _played(teacher) if setup.records_encoder else self.encoder

        def encode(rgb: Tensor, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
            if setup.tiny_encoder:
                return self.tiny.encode((rgb * 2 - 1).to(self.dtype)).latents.to(rgb.dtype)
            mean, logarithm = encoder(rgb * 2 - 1).chunk(2, 1)
            mean, std = mean.to(rgb.dtype), torch.exp(0.5 * logarithm).to(rgb.dtype)
            return (mean + std * torch.empty_like(mean) - teacher.shift) * teacher.scaling_factor

        images = self._images(setup.views)
        latents = encode_in_slices(encode, images, torch.Generator(), setup.encode_slice)
        answers = self._latents(setup.views * setup.prompts) if setup.records_network else self._ask(setup.views)
        if self.operator is not None and not setup.cuda_graphs:
            self._learn(answers[: setup.views])
        torch.autograd.grad(latents, images, torch.empty_like(latents))

    def _ask(self, views: int) -> Tensor:
        """All answers for `views` latents, [prompts x views,C,h,w]."""
        texts, batch = self.denoiser.text, views * self.setup.prompts
        rows = TOKENS + -(-texts.pooled // texts.width)
        text = torch.empty(batch, rows, texts.width, device="meta")
        noisy, t = self._latents(views), torch.empty(batch, device="meta").long()
        with torch.no_grad():
            repeated, text = noisy.repeat(self.setup.prompts, 1, 1, 1), text.to(self.dtype)
            return in_slices(self.denoiser, self.setup.unet_slice, repeated, t, text)

    def _learn(self, answers: Tensor) -> None:
        t = torch.empty(len(answers), device="meta").long()
        mapped = self.operator(answers, t)
        torch.autograd.grad(mapped.square().mean(), list(self.operator.parameters()), allow_unused=True)

    def _encode_and_back(self, views: int) -> None:
        images = self._images(views)
        moments = self.encoder(images)
        torch.autograd.grad(moments, images, torch.empty_like(moments))

    def _diffusers(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels.to(self.vae.dtype).contiguous()).latent_dist.parameters

    def _images(self, views: int) -> Tensor:
        return torch.empty(views, 3, *self.teacher.image_size, device="meta", requires_grad=True)

    def _latents(self, count: int) -> Tensor:
        return torch.empty(count, *self.teacher.latent_shape, device="meta")


class _Played(torch.autograd.Function):
    """What a call of the encoder's recording makes outside of it: copies of the result and of the gradient."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = pixels.shape
        return pixels.new_empty(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_empty(ctx.shape), None


def _played(teacher: Any) -> Callable[[Tensor], Tensor]:
    channels, height, width = teacher.latent_shape
    return lambda pixels: _Played.apply(pixels, (len(pixels), 2 * channels, height, width))


def _without_values(network: Any, dtype: torch.dtype) -> Any:
    """The same diffusers model on the meta device, whatever compiling or offloading did to this one."""
    with torch.device("meta"):
        twin = type(network).from_config(dict(network.config))
    # Not by diffusers' own `to`, which warns of what has no meaning here.
    return nn.Module.to(twin, dtype).eval().requires_grad_(False)


def _denoiser_without_values(teacher: Any, dtype: torch.dtype, cpu_offload: bool) -> Any:
    denoiser = teacher.denoiser.with_network(_without_values(teacher.network, dtype))
    if teacher.options.attention_slicing:
        denoiser.slice_attention()
    elif teacher.denoiser.project is not None and not cpu_offload:
        denoiser.fuse_projections()
    return denoiser
