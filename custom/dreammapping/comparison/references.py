"""What the teacher itself draws for the prompts of a plan, seen by the same networks: what score distillation could at best look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..evaluation.features import Extractor
from ..evaluation.picture_statistics import picture_statistics
from .scores import TEACHER, Asset, asked, rows_of


def teacher_assets(samples: Mapping[str, Sequence[Path]], networks: Sequence[Extractor]) -> list[Asset]:
    """For each prompt its samples, as if they were pictures of a method called TEACHER; `samples` is what `reference_samples` returns."""
    found = []
    texts: dict[tuple[str, str], torch.Tensor] = {}
    for prompt, paths in samples.items():
        images = torch.from_numpy(np.stack([_opened(path) for path in paths])).float() / 255
        values = {f"statistics.{name}": rows.mean().item() for name, rows in picture_statistics(images).items()}
        features = {network.name: network.features(images).half().numpy() for network in networks}
        for network in networks:
            values |= asked(network, rows_of(features[network.name]), prompt, "2d", texts)
        found.append(Asset("2d", TEACHER, prompt, 0, "", values, {}, features))
    return found


def _opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
