"""Weights of a part trained for a teacher: safetensors beside their card."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..errors import ConfigError
from ..files import write_atomic
from .card import CARD, PartCard


def save_part(part: nn.Module, card: PartCard, path: Path) -> None:
    """Write the weights (floating ones as float16) to `path` and the card beside it; the card last, so that a folder
    with a card is complete."""
    from safetensors.torch import save

    state = {key: value.detach().cpu() for key, value in part.state_dict().items()}
    halves = {key: (v.half() if v.is_floating_point() else v).contiguous() for key, v in state.items()}
    write_atomic(path, save(halves))
    write_atomic(path.with_name(CARD), card.to_json())


def load_weights(part: nn.Module, path: Path, hint: str) -> None:
    """Fill `part`, in its own dtype. Raises ConfigError, which ends with `hint`, if the file is damaged or not its."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        part.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as damage:
        first = str(damage).strip().splitlines()[0]
        raise ConfigError(f"cannot load {path}: {first}. {hint}") from damage
