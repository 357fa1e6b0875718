"""Base class of backgrounds, and the random colors two of them can show during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.base import BaseModule
from threestudio.utils.processes import own_rows, process_count


class BaseBackground(BaseModule):
    """What a ray sees that meets nothing."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    def configure(self) -> None:
        pass

    def forward(self, dirs: Tensor) -> Tensor:
        """Ray directions [B, H, W, 3] -> colors [B, H, W, C]."""
        raise TypeError(f"{type(self).__name__} does not define forward(), which every background must.")


def random_colors(color: Tensor) -> Tensor:
    """One uniform color per batch item of `color` [B, H, W, C], in its shape.

    Drawn on the CPU, so that a seed gives the same colors on every device, from torch's global generator, whose state a
    system saves with its checkpoints. With several processes each draws the whole batch's, and takes its own.
    """
    total = color.shape[0] * process_count()
    drawn = torch.rand(total, 1, 1, color.shape[-1])[own_rows(total)]
    if color.device.type == "cuda":  # pinned: no waiting for the work queued there
        drawn = drawn.pin_memory().to(color, non_blocking=True)
    return drawn.to(color).expand(color.shape)


def should_augment(module: Any) -> bool:
    """Whether this call shows a random color: never in evaluation, else with the probability `cfg.random_aug_prob`."""
    if not (module.training and module.cfg.random_aug):
        return False
    return bool(torch.rand(()) < module.cfg.random_aug_prob)
