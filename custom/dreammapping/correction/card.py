"""What the JSON card of a part trained for a teacher says, and whether it belongs to another one; a corrector's card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import ConfigError
from ..settings import parse_settings

CARD = "card.json"
C = TypeVar("C", bound="PartCard")
READS = ("clean", "noisy")


WIDTHS = (32, 64)
"""Channels of the corrector's own levels, whatever the teacher's size."""


@dataclass
class PartCard:
    """What every part trained for a teacher says of itself; the fields are the keys of the JSON file."""

    latent_shape: tuple[int, int, int]
    """(C, h, w) of the teacher's latents."""
    steps: int
    """T of the teacher's noise schedule."""
    teacher: str
    """As the training command named it."""
    teacher_fingerprint: str
    """Of its weights; empty if it could not be determined."""
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


@dataclass
class CorrectorCard(PartCard):
    """A corrector's description."""

    reads: Literal["clean", "noisy"] = "clean"
    """What b_psi sees of a draw: x_0 or x_t."""
    widths: tuple[int, ...] = WIDTHS
    """Channels of the U-Net's levels; each is a multiple of 8."""


def read_card(folder: Path, kind: type[C], what: str, hint: str) -> C:
    """The card of that kind in `folder`. Raises ConfigError, which ends with `hint`, if there is none of `what`."""
    path = folder / CARD
    if not path.is_file():
        raise ConfigError(f"there is no {what} in {folder} ({CARD} is missing). {hint}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ConfigError(f"{path} is not JSON ({problem}). {hint}") from problem
    return parse_settings(kind, values, str(path))


def training_command(teacher: str, output: str = "build/corrector") -> str:
    """What a user types to get a corrector for `teacher`."""
    return f'python -m custom.dreammapping.correction.train --teacher "{teacher}" --output "{output}"'


def advice(teacher: str, output: str = "build/corrector") -> str:
    """Ends a message about a corrector that is missing or does not fit."""
    return (
        f"Train one for this teacher with: {training_command(teacher, output)}   and give its folder as "
        f"system.guidance.loss.corrector={output}"
    )
