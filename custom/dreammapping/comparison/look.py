"""A protocol and the networks it names."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..evaluation.features import Extractor, load_extractor
from ..evaluation.protocol import Protocol


@dataclass(frozen=True)
class Look:
    """How results are looked at."""

    protocol: Protocol
    networks: dict[str, Extractor]
    """By the names that the protocol uses."""

    def text(self, prompt: str) -> str:
        """What pictures of a prompt are compared with."""
        return self.protocol.text.replace("{prompt}", prompt)


def names_of(protocol: Protocol) -> list[str]:
    """All networks that a protocol needs, each once."""
    return list(dict.fromkeys(name for name in (*protocol.clip, protocol.fid, protocol.judge) if name))


def load_look(protocol: Protocol, device: torch.device | str = "cpu") -> Look:
    """Load the networks. Raises ConfigError for one that is not there."""
    return Look(protocol, {name: load_extractor(name, device) for name in names_of(protocol)})
