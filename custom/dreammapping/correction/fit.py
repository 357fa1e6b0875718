"""Fitting a part (b_psi, or VDM's operator) to the pairs, in a loop that can be killed at any moment and goes on to the
same result."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..distillation import NoiseSchedule
from ..errors import DreamMappingError
from ..files import write_atomic
from .corrector import Corrector
from .pairs import Pairs

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class FitOptions:
    """Numbers of the fit."""

    steps: int = 2000
    batch: int = 32
    lr: float = 1e-3
    """Peak; linear warm-up over the first `warmup` steps, then a cosine to zero."""
    warmup: int = 50
    seed: int = 0
    save_every: int = 100


def corrector_loss(corrector: Corrector, pairs: Pairs, index: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Mean of |b - estimate|^2 / sig^2: at every t the network's own output has an error of about the same size."""
    device = next(corrector.parameters()).device
    clean, noisy, t, estimate = (x.to(device) for x in pairs.rows(index))
    alpha_bar = schedule.at(t, clean)
    error = corrector(clean, noisy, t, alpha_bar) - estimate
    return (error.square() / (1 - alpha_bar)).mean()


def fit(
    part: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    options: FitOptions,
    folder: Path,
    report: Callable[[str], None] = print,
) -> None:
    """Train `part` in place on `loss(index)`, where index [batch] are pairs out of `count`.

    A checkpoint in `folder` is continued; when done, it stays.
    """
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(part.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.01)
    path = folder / CHECKPOINT
    first = _restore(path, part, optimizer, generator, report)
    part.train()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * _factor(step, options)
        index = torch.randint(0, count, (options.batch,), generator=generator)
        error = loss(index)
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % options.save_every == 0 or done == options.steps:
            value = error.item()
            if not math.isfinite(value):
                raise DreamMappingError(f"the loss is {value} at step {done}; train with a lower --lr in a new --work")
            write_atomic(path, _state(done, part, optimizer, generator))
            report(f"step {done} of {options.steps}: loss {value:.4f}")
    part.eval()


def _factor(step: int, options: FitOptions) -> float:
    rise = min((step + 1) / max(options.warmup, 1), 1.0)
    return rise * 0.5 * (1 + math.cos(math.pi * step / options.steps))


def _state(step: int, part: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> bytes:
    buffer = io.BytesIO()
    state = {
        "step": step,
        "network": part.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def _restore(
    path: Path,
    part: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> int:
    if not path.is_file():
        return 0
    device = next(part.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    part.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"].cpu())
    report(f"going on at step {state['step']}")
    return state["step"]
