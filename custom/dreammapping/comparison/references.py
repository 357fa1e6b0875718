"""What the teacher itself draws for the prompts of a plan, seen by the same networks: what score distillation could at best look like."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..evaluation.assets import read_pictures
from ..evaluation.picture_statistics import picture_statistics
from ..evaluation.reference_samples import reference_samples
from .look import Look
from .scores import TEACHER, Asset, Texts, asked


def teacher_assets(prompts: Sequence[str], look: Look, device: torch.device | str = "cpu") -> list[Asset]:
    """For each prompt its samples, as if they were pictures of a method called TEACHER; none if the protocol asks for none.

    Samples that are not in the cache are drawn on `device`.
    """
    if look.protocol.reference is None:
        return []
    found, texts = [], Texts()
    for prompt, paths in reference_samples(prompts, look.protocol.reference, device, report=print).items():
        images = read_pictures(paths, look.protocol.image_size, look.protocol.background)
        values = {f"statistics.{name}": rows.mean().item() for name, rows in picture_statistics(images).items()}
        features = {name: network.features(images).half().numpy() for name, network in look.networks.items()}
        found.append(Asset("2d", TEACHER, prompt, 0, "", values | asked(look, features, prompt, "2d", texts), {}, features))
    return found
