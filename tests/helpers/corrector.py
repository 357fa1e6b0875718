"""Correctors for tests, and the options that losses cannot do without."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from dreammapping.correction import Corrector, CorrectorCard, build_corrector, save_corrector
from dreammapping.teachers import DiffusersTeacher

from tests.helpers.score import SHAPE

_KEPT: list[TemporaryDirectory] = []


def card(**changes: Any) -> CorrectorCard:
    """Of a corrector for the closed-form teachers, whose weights have no hash."""
    values = {"latent_shape": SHAPE, "steps": 1000, "teacher": "closed form", "teacher_fingerprint": "", "widths": (8,)}
    return CorrectorCard(**values | changes)


def make_corrector(folder: Path, seed: int | None = None, **changes: Any) -> Corrector:
    """Write a corrector: untrained (f = 0), or with random weights from `seed`."""
    described = card(**changes)
    corrector = build_corrector(described.latent_shape, described.reads, described.widths)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in corrector.parameters():
                parameter.copy_((0.3 * torch.randn(parameter.shape, generator=generator)).half())
    save_corrector(corrector, described, folder)
    return corrector


def corrector_for(teacher: Path, folder: Path) -> list[str]:
    """Write an untrained corrector for the teacher in a folder; the override that names it."""
    model = DiffusersTeacher.load(str(teacher))
    known = {"teacher": model.name, "teacher_fingerprint": model.fingerprint}
    make_corrector(folder, latent_shape=model.latent_shape, steps=model.schedule.steps, **known)
    return [f"system.guidance.loss.corrector={folder}"]


@cache
def untrained_corrector() -> str:
    """A folder that is removed when the tests end."""
    _KEPT.append(TemporaryDirectory())
    make_corrector(Path(_KEPT[-1].name))
    return _KEPT[-1].name


def loss_config(name: str) -> dict[str, Any]:
    """The block of a loss with its defaults, and with what has none."""
    return {"type": name, "corrector": untrained_corrector()} if name == "lmc-sds" else {"type": name}
