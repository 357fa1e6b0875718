"""How much GPU memory a run will need, known before it starts, and which options make it fit.

Weights, the scene and its optimizer are counted. What the networks need while they work is tallied on the meta
device (live_memory.py) in the order of a training step: views encoded with graph, U-Net without, operator, backward.
The rest is said by the named constants here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..processes import Rows
from ..teachers.diffusers_teacher import _use_plain_vae_attention
from ..teachers.slices import encode_in_slices, in_slices
from .live_memory import peak_bytes

GIB = 2**30

CONTEXT_BYTES = int(0.55 * GIB)
"""CUDA's context and the libraries' handles and kernels, outside of torch's allocator."""

WORKSPACE_BYTES = int(0.25 * GIB)
"""Scratch space of convolutions and matrix products."""

SLACK = 0.06
"""What torch's allocator reserves beyond the tensors, as a share of them."""

TILES_PER_GAUSSIAN = 8
"""Tiles of 16 x 16 pixels that a visible Gaussian touches in a view, on average."""

BYTES_PER_TILE = 40
"""Of each such pair: sort key (8) and index (4), with the sort's second buffers and its scratch space."""

FLOATS_PER_PROJECTION = 2 * (2 + 1 + 3 + 1 + 4) + 2
"""Of each Gaussian in each view, 4 bytes each: center, depth, conic, opacity, color and depth channel, each with its
gradient, and two radii."""

FLOATS_PER_PIXEL = 2 * (4 + 1) + 2 + 8 * 3
"""Of each pixel of each view: image, depth and opacity with their gradients, the last Gaussian and the count, and eight
pictures: origins, directions, background, composed, clamped, their gradients."""

TOKENS = 77
"""Length of a prompt's embedding, CLIP's."""

OPTIONS: tuple[dict[str, Any], ...] = (
    {"encode_slice": 2},
    {"encode_slice": 1},
    {"encode_slice": 1, "unet_slice": 4},
    {"encode_slice": 1, "unet_slice": 2},
    {"encode_slice": 1, "unet_slice": 2, "cpu_offload": True},
)
"""What to try in this order, the cheapest in time first."""

KEYS = {"cpu_offload": "enable_sequential_cpu_offload"}
"""Config keys of options that are called otherwise here."""


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
    encode_slice: int = 0
    unet_slice: int = 0
    cpu_offload: bool = False


@dataclass(frozen=True)
class Estimate:
    """Bytes by what needs them, at the moment when most is needed."""

    parts: dict[str, int]

    @property
    def peak(self) -> int:
        """What the process takes of the GPU."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.parts.items())


def estimate(teacher: Any, operator: nn.Module | None, setup: Setup, dtype: torch.dtype) -> Estimate:
    """The peak of a step with `teacher` (a DiffusersTeacher) in `dtype`, and with what the loss trains (a module like
    U-Lite, called with the latents and t; or None)."""
    vae, denoiser = _network_without_values(teacher.vae, dtype), _denoiser_without_values(teacher, dtype)
    _use_plain_vae_attention(vae)  # as on CUDA
    trained = 0 if operator is None else 4 * _bytes(operator)  # values, gradients, Adam's two moments
    # Not in training mode, in which several processes would exchange their statistics.
    shadow = None if operator is None else copy.deepcopy(operator).to("meta", torch.float32).eval()
    work = peak_bytes(lambda: _step(teacher, vae, denoiser, shadow, setup, dtype))
    tensors = {
        "weights": _weights(vae, denoiser.network, setup.cpu_offload),
        "scene": 4 * setup.scene_bytes,
        "renderer": _renderer_bytes(setup),
        "operator": trained,
        "networks at work": work,
    }
    slack = int(SLACK * sum(tensors.values()))
    return Estimate({**tensors, "workspaces": WORKSPACE_BYTES, "allocator": slack, "CUDA": CONTEXT_BYTES})


def helpful_options(
    teacher: Any, operator: nn.Module | None, setup: Setup, dtype: torch.dtype
) -> Iterator[tuple[str, Estimate]]:
    """Overrides for the command line that need less memory, and how much is then needed; the quickest first."""
    least = estimate(teacher, operator, setup, dtype).peak
    for options in OPTIONS:
        found = estimate(teacher, operator, replace(setup, **options), dtype)
        if found.peak < least:
            least = found.peak
            keys = (f"system.guidance.{KEYS.get(name, name)}={str(value).lower()}" for name, value in options.items())
            yield " ".join(keys), found


# ---- the step, without values ----


def _step(teacher: Any, vae: Any, denoiser: Any, operator: nn.Module | None, setup: Setup, dtype: torch.dtype) -> None:
    """One training step's networks on the meta device."""
    texts = denoiser.text
    images = torch.empty(setup.views, 3, *teacher.image_size, device="meta", requires_grad=True)

    def encode(rgb: Tensor, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
        posterior = vae.encode((rgb * 2 - 1).to(dtype).contiguous()).latent_dist
        mean, std = posterior.mean.to(rgb.dtype), posterior.std.to(rgb.dtype)
        return (mean + std * torch.empty_like(mean) - teacher.shift) * teacher.scaling_factor

    latents = encode_in_slices(encode, images, torch.Generator(), setup.encode_slice)
    with torch.no_grad():
        batch = setup.views * setup.prompts
        rows = TOKENS + -(-texts.pooled // texts.width)
        text = torch.empty(batch, rows, texts.width, device="meta", dtype=dtype)
        noisy, t = latents.detach().repeat(setup.prompts, 1, 1, 1), torch.empty(batch, device="meta")
        answers = in_slices(denoiser, setup.unet_slice, noisy, t.long(), text)
    if operator is not None:
        mapped = operator(answers[: setup.views].float(), t[: setup.views].long())
        torch.autograd.grad(mapped.square().mean(), list(operator.parameters()), allow_unused=True)
        del mapped
    torch.autograd.grad(latents, images, torch.empty_like(latents))


def _network_without_values(network: Any, dtype: torch.dtype) -> Any:
    """The same diffusers model on the meta device, whatever compiling or offloading did to this one."""
    with torch.device("meta"):
        twin = type(network).from_config(dict(network.config))
    # Not by diffusers' own `to`, which warns of what has no meaning here.
    return nn.Module.to(twin, dtype).eval().requires_grad_(False)


def _denoiser_without_values(teacher: Any, dtype: torch.dtype) -> Any:
    denoiser = teacher.denoiser.with_network(_network_without_values(teacher.network, dtype))
    if teacher.options.attention_slicing:
        denoiser.slice_attention()
    return denoiser


# ---- what is counted ----


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _weights(vae: nn.Module, network: nn.Module, cpu_offload: bool) -> int:
    if not cpu_offload:
        return _bytes(vae) + _bytes(network)
    layers = (sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False))
              for part in (vae, network) for layer in part.modules())  # fmt: skip
    return max(layers)


def _renderer_bytes(setup: Setup) -> int:
    seen = setup.views * setup.gaussians
    pixels = setup.views * setup.height * setup.width
    return seen * (4 * FLOATS_PER_PROJECTION + TILES_PER_GAUSSIAN * BYTES_PER_TILE) + pixels * 4 * FLOATS_PER_PIXEL
