"""A step as a plain list of tensors, for what takes nothing else: recordings (recorded_update.py), and transfers between
processes (joint_update.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .cfg import Guided
from .draw import NoisyDraw


def flatten(draw: NoisyDraw, answers: Guided) -> tuple[Tensor, ...]:
    """All that a loss reads of them on the device, each [B, ...]."""
    drawn = (draw.clean, draw.noise, draw.noisy, draw.t, draw.alpha_bar)
    return answers.cond, answers.uncond, answers.guided, *drawn


def rebuild(draw: NoisyDraw, answers: Guided, tensors: Sequence[Tensor]) -> tuple[NoisyDraw, Guided]:
    """Both with other tensors, in the order of `flatten`, and without the context."""
    cond, uncond, guided, clean, noise, noisy, t, alpha_bar = tensors
    draw = replace(draw, clean=clean, noise=noise, noisy=noisy, t=t, alpha_bar=alpha_bar, context={})
    return draw, replace(answers, cond=cond, uncond=uncond, guided=guided)
