"""An operator trained before the generation, and the files that a run starts it from (`loss.psi_start`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..correction.card import PartCard, read_card
from ..correction.weights import load_weights, save_part
from ..errors import ConfigError

WEIGHTS = "operator.safetensors"


@dataclass(frozen=True)
class OperatorKind:
    """What must agree between the operator of a run and the one it starts from."""

    operator: str = "nonlinear"
    """nonlinear (U-Lite), linear, nonlinear_noise."""
    stages: int | None = None
    """U-Lite's halvings; None chooses by the latents."""
    norm: str = "batch"
    """batch or group."""
    time_cond: bool = False
    """Whether M knows t."""
    width: int | None = None
    """U-Lite's channels at full resolution; None chooses by the latents."""


KEYS = {"operator": "operator", "stages": "stages", "norm": "bn_mode", "time_cond": "m_time_cond", "width": "width"}
"""Of the kind, in the loss's block."""


@dataclass
class OperatorCard(PartCard):
    """A pretrained operator's description; the last five fields are its OperatorKind."""

    operator: str = "nonlinear"
    stages: int | None = None
    norm: str = "batch"
    time_cond: bool = False
    width: int | None = None

    @property
    def kind(self) -> OperatorKind:
        return OperatorKind(self.operator, self.stages, self.norm, self.time_cond, self.width)


def training_command(teacher: str, output: str = "build/operator") -> str:
    """What a user types to get an operator for `teacher`."""
    return f'python -m custom.dreammapping.degradation.train --teacher "{teacher}" --output "{output}"'


def save_operator(operator: nn.Module, card: OperatorCard, folder: Path) -> None:
    """Write weights (float16), running statistics and card."""
    save_part(operator, card, folder / WEIGHTS)


def start_operator(
    operator: nn.Module,
    folder: str | Path,
    kind: OperatorKind,
    *,
    teacher: str,
    fingerprint: str,
    latent_shape: tuple[int, int, int],
    steps: int,
    any_weights: bool = False,
) -> OperatorCard:
    """Fill `operator`, which is of `kind`, with the weights in `folder`; it stays trainable. Returns their card.

    The other arguments describe the teacher; `any_weights` accepts an operator trained for other weights of the same
    latents and schedule. Raises ConfigError if it is missing, damaged, another kind's or another teacher's.
    """
    folder = Path(folder)
    hint = f"Train one for this teacher with: {training_command(teacher, str(folder))}"
    card = read_card(folder, OperatorCard, "operator", hint)
    problem = card.problem(latent_shape, steps, "" if any_weights else fingerprint)
    if problem:
        raise ConfigError(
            f"the operator in {folder} was trained for {card.teacher}: {problem}. Train one for this teacher with: "
            f"{training_command(teacher)}; if the weights are the same in another format, "
            "system.guidance.loss.psi_any_weights=true accepts it"
        )
    different = [key for key in KEYS if getattr(card.kind, key) != getattr(kind, key)]
    if different:
        both = ", ".join(f"{key} {getattr(card.kind, key)!r} there, {getattr(kind, key)!r} here" for key in different)
        keys = ", ".join(KEYS[key] for key in different)
        raise ConfigError(
            f"the operator in {folder} is of another kind ({both}); change {keys} in system.guidance.loss, or train "
            f"one with other options of {training_command(teacher)}"
        )
    load_weights(operator, folder / WEIGHTS, hint)
    return card
