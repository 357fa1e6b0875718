"""What is left of a run: its facts, what the networks saw in its last views, and a strip of these views. All else is asked of this later.

NAME.npz holds `features.NETWORK` [N, D] float16 and `statistics.NAME` [N] float32 of the N last views: all around an object, or the pictures of a
run, prompt by prompt. NAME.jpg shows up to `STRIP_VIEWS` views of an object, or every picture, side by side.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DreamMappingError
from ..evaluation.assets import find_assets, read_pictures
from ..evaluation.picture_statistics import picture_statistics
from ..evaluation.protocol import Protocol
from ..files import write_atomic
from .look import Look, load_look
from .plan import ROOT
from .runner import Job

STRIP_VIEWS, STRIP_SIDE = 8, 128
FACTS = ("training_seconds", "steps", "primitives", "device", "peak_gpu_memory_bytes", "unet_forwards", "unet_backwards", "preset", "teacher")
"""What is taken from the model card."""
_looks: list[Look] = []


def begin(protocol: Protocol) -> None:
    """Load what every run of this process is looked at with."""
    os.chdir(ROOT)  # where the configs and load/ are
    import launch

    launch.select_gpus(None)  # before the networks ask CUDA
    _looks[:] = [load_look(protocol, "cuda" if torch.cuda.is_available() else "cpu")]


def harvest(job: Job, run: Path, record: Path) -> dict[str, Any]:
    """Look at a finished run's last views and write `record`.npz and .jpg; facts of its card."""
    look, kind = _looks[0], job.about["representation"]
    found = find_assets(run)
    images = torch.cat([read_pictures(asset.pictures, look.protocol.image_size, look.protocol.background) for asset in found])
    kept = {f"features.{name}": network.features(images).half().numpy() for name, network in look.networks.items()}
    kept |= {f"statistics.{name}": values.float().numpy() for name, values in picture_statistics(images).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **kept)
    write_atomic(Path(f"{record}.npz"), buffer.getvalue())
    write_atomic(Path(f"{record}.jpg"), strip(images, None if kind == "2d" else STRIP_VIEWS))
    return {key: found[0].card.get(key) for key in FACTS}


def strip(images: Tensor, count: int | None) -> bytes:
    """A JPEG of `count` evenly chosen views, or all, side by side, at most STRIP_SIDE pixels high."""
    chosen = range(len(images)) if count is None or count >= len(images) else [round(i * len(images) / count) for i in range(count)]
    height, width = images.shape[1:3]
    side = min(1.0, STRIP_SIDE / height)
    size = max(1, round(width * side)), max(1, round(height * side))
    row = Image.new("RGB", (size[0] * len(chosen), size[1]))
    for place, index in enumerate(chosen):
        view = Image.fromarray((images[index] * 255).round().byte().numpy())
        row.paste(view if view.size == size else view.resize(size, Image.Resampling.BOX), (place * size[0], 0))
    buffer = io.BytesIO()
    row.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def read_arrays(output: Path, job: Job) -> dict[str, np.ndarray]:
    """The .npz of a run. Raises DreamMappingError if it cannot be read."""
    path = output / "runs" / f"{job.name}.npz"
    try:
        with np.load(path, allow_pickle=False) as seen:
            return {key: seen[key] for key in seen.files}
    except (OSError, ValueError, KeyError) as problem:
        raise DreamMappingError(f"{path} cannot be read ({problem}); delete {job.name}.json beside it to make the run again") from problem

