"""How much GPU memory a run will need, known before it starts, and which options make it fit.

Weights, the scene and its optimizer are counted. What the networks need while they work is tallied on the meta device
(shadow_step.py), so that it follows from shapes. The rest is said by the named constants here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .shadow_step import Setup, ShadowStep

GIB = 2**30

CONTEXT_BYTES = int(0.83 * GIB)
"""CUDA's context and the libraries' handles and kernels, outside of torch's allocator: measured (docs/memory.md)."""

SLACK = 0.15
"""What torch's allocator reserves beyond the tensors that are counted, as a share of them: scratch space of convolutions and
matrix products, and what lies in between. 0.01 to 0.24 were measured (docs/memory.md)."""

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

OPTIONS: tuple[dict[str, Any], ...] = (
    {"encode_slice": 2},
    {"encode_slice": 1},
    {"encode_slice": 1, "unet_slice": 4, "cuda_graphs": False},
    {"encode_slice": 1, "unet_slice": 4, "cpu_offload": True},
)
"""What to try in this order, the cheapest in time first."""

KEYS = {"cpu_offload": "enable_sequential_cpu_offload"}
"""Config keys of options that are called otherwise here."""


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
    step = ShadowStep(teacher, operator, setup, dtype)
    tensors = {
        "weights": _weights(step, setup.cpu_offload),
        "scene": 4 * setup.scene_bytes,
        "renderer": _renderer_bytes(setup),
        "operator": 0 if operator is None else 4 * _bytes(operator),  # values, gradients, Adam's two moments
        "networks at work": step.direct_bytes(),
        "recordings": step.recorded_bytes(),
    }
    return Estimate({**tensors, "allocator": int(SLACK * sum(tensors.values())), "CUDA": CONTEXT_BYTES})


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


# ---- what is counted ----


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _weights(step: ShadowStep, cpu_offload: bool) -> int:
    networks = [step.vae, step.denoiser.network]
    tiny = 0 if step.tiny is None else _bytes(step.tiny)  # stays on the GPU
    if not cpu_offload:
        return sum(map(_bytes, networks)) + step.copied + tiny
    layers = (sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False))
              for network in networks for layer in network.modules())  # fmt: skip
    return max(layers) + tiny


def _renderer_bytes(setup: Setup) -> int:
    seen = setup.views * setup.gaussians
    pixels = setup.views * setup.height * setup.width
    return seen * (4 * FLOATS_PER_PROJECTION + TILES_PER_GAUSSIAN * BYTES_PER_TILE) + pixels * 4 * FLOATS_PER_PIXEL
