"""Separate streams of random numbers from the run's one seed, so that no part's draws depend on another's."""

from __future__ import annotations

import torch

_STREAMS = {"initialization": 0x1217, "densification": 0xDE45, "pictures": 0x91C7, "batches": 0xBA7C, "shap-e": 0x54AE}
"""A fixed number for each stream, mixed into the run's seed."""


def stream_seed(stream: str) -> int:
    """The seed of a stream in this run."""
    return (torch.initial_seed() * 0x9E3779B1 + _STREAMS[stream]) % (1 << 63)


def stream_generator(stream: str, number: int = 0) -> torch.Generator:
    """CPU generator at the start of a stream; `number` tells its substreams apart (a step, a picture)."""
    return torch.Generator().manual_seed((stream_seed(stream) + number * 0xBF58476D1CE4E5B9) % (1 << 63))
