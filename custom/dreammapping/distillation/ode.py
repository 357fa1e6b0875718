"""Walks along the probability-flow ODE: DDIM jumps (noise_schedule.py), each image of a batch by its own route."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..transfers import to_device
from .draw import draw_noise
from .teacher import PromptedTeacher

Ask = Callable[[Tensor, Tensor, PromptedTeacher], Tensor]
"""(x [b,C,h,w], t [b], the teacher for these images) -> eps [b,C,h,w]."""


def ladder(start: Tensor, end: Tensor, rung: int) -> Tensor:
    """A route [N+1,B] from `start` up to `end` ([B] each, on the CPU) in jumps of `rung`, the last one shorter.

    Images that arrive early wait: their step repeats.
    """
    jumps = max(-(-int((end - start).max()) // rung), 0)
    return torch.stack([torch.minimum(start + n * rung, end) for n in range(jumps + 1)])


def walk(
    noisy: Tensor,
    route: Tensor,
    ask: Ask,
    teacher: PromptedTeacher,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """From `noisy` [B,C,h,w] at the steps `route[0]` to [B,C,h,w] at `route[-1]`.

    `route` [N+1,B], integer, on the CPU, where the decisions are made; a negative step means clean. From each row to
    the next `ask` predicts and a DDIM jump follows, for those images alone whose step changes: every image costs and
    becomes what it would by itself. `eta` > 0 adds eta times the noise of the jump back to each jump, drawn from
    `generator` for the whole batch.
    """
    for now, ahead in pairwise(route):
        moving = now != ahead
        if not bool(moving.any()):
            continue
        fresh = draw_noise(noisy, generator) if eta else None
        if bool(moving.all()):
            noisy = _jump(noisy, now, ahead, ask, teacher, eta, fresh)
            continue
        rows = to_device(moving.nonzero().flatten(), noisy.device)
        part = None if fresh is None else fresh[rows]
        moved = _jump(noisy[rows], now[moving], ahead[moving], ask, teacher.rows(rows), eta, part)
        noisy = noisy.index_copy(0, rows, moved)
    return noisy


def _jump(
    noisy: Tensor, now: Tensor, ahead: Tensor, ask: Ask, teacher: PromptedTeacher, eta: float, fresh: Tensor | None
) -> Tensor:
    """One jump of all these images; a clean image is shown to the network as its first step's."""
    t, t_next = to_device(now, noisy.device), to_device(ahead, noisy.device)
    moved = teacher.schedule.ddim_step(noisy, ask(noisy, t.clamp(min=0), teacher), t, t_next)
    return moved if fresh is None else moved + eta * teacher.schedule.ddim_sigma(t_next, t, noisy) * fresh
