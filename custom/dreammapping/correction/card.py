"""What a corrector's JSON card says, and whether it belongs to a teacher."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..settings import parse_settings

CARD = "card.json"
READS = ("clean", "noisy")


WIDTHS = (32, 64)
"""Channels of the corrector's own levels, whatever the teacher's size."""


@dataclass
class CorrectorCard:
    """A corrector's description; its fields are the keys of the JSON file."""

    latent_shape: tuple[int, int, int]
    """(C, h, w) of the teacher's latents."""
    steps: int
    """T of the teacher's noise schedule."""
    teacher: str
    """As the training command named it."""
    teacher_fingerprint: str
    """Of its weights; empty if it could not be determined."""
    reads: Literal["clean", "noisy"] = "clean"
    """What b_psi sees of a draw: x_0 or x_t."""
    widths: tuple[int, ...] = WIDTHS
    """Channels of the U-Net's levels; each is a multiple of 8."""
    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained and how well it does; for people."""

    def problem(self, latent_shape: tuple[int, int, int], steps: int, fingerprint: str) -> str | None:
        """Why it does not fit a teacher, or None. Without both fingerprints only the shapes are compared."""
        if tuple(latent_shape) != self.latent_shape:
            return f"its latents are {list(self.latent_shape)}, this teacher's {list(latent_shape)}"
        if steps != self.steps:
            return f"its noise schedule has {self.steps} steps, this teacher's {steps}"
        if fingerprint and self.teacher_fingerprint and fingerprint != self.teacher_fingerprint:
            return f"its weights have the hash {self.teacher_fingerprint[:12]}, this teacher's {fingerprint[:12]}"
        return None

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def read_card(folder: Path, teacher: str) -> CorrectorCard:
    """The card in `folder`. Raises ConfigError with the command that makes one for `teacher`."""
    path = folder / CARD
    if not path.is_file():
        raise ConfigError(f"there is no corrector in {folder} ({CARD} is missing). {advice(teacher, str(folder))}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ConfigError(f"{path} is not JSON ({problem}). {advice(teacher, str(folder))}") from problem
    return parse_settings(CorrectorCard, values, str(path))


def training_command(teacher: str, output: str = "build/corrector") -> str:
    """What a user types to get a corrector for `teacher`."""
    return f'python -m custom.dreammapping.correction.train --teacher "{teacher}" --output "{output}"'


def advice(teacher: str, output: str = "build/corrector") -> str:
    """Ends a message about a corrector that is missing or does not fit."""
    return (
        f"Train one for this teacher with: {training_command(teacher, output)}   and give its folder as "
        f"system.guidance.loss.corrector={output}"
    )
