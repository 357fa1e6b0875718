"""What is left of a run: its facts, what the networks saw in its last views, and a strip of these views. All else is asked of this later.

NAME.npz holds `features.NETWORK` [N, D] float16 and `statistics.NAME` [N] float32 of the N last views: all around an object, or the pictures of a
run, prompt by prompt. NAME.jpg shows up to `STRIP_VIEWS` views of an object, or every picture, side by side.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DreamMappingError
from ..evaluation.features import Extractor, load_extractor
from ..evaluation.picture_statistics import picture_statistics
from ..files import write_atomic
from .plan import ROOT
from .runner import Job

if TYPE_CHECKING:
    from ..evaluation.protocol import Protocol

STRIP_VIEWS, STRIP_SIDE = 8, 128
FACTS = ("training_seconds", "steps", "primitives", "device", "peak_gpu_memory_bytes", "unet_forwards", "unet_backwards", "preset", "teacher")
"""What is taken from the model card."""
_networks: list[Extractor] = []


def begin(networks: Sequence[str]) -> None:
    """Load what every run of this process is looked at with."""
    os.chdir(ROOT)  # where the configs and load/ are
    import launch

    launch.select_gpus(None)  # before the networks ask CUDA
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _networks[:] = [load_extractor(name, device) for name in networks]


def views_of(protocol: Protocol, kind: str) -> list[str]:
    """Overrides that make a run look at its result as the protocol says; pictures have the teacher's size and no views."""
    if kind == "2d":
        return []
    return [
        f"data.n_test_views={protocol.views + 1}",  # the last repeats the first
        f"data.eval_height={protocol.image_size}", f"data.eval_width={protocol.image_size}", f"data.eval_elevation_deg={protocol.elevation}",
    ]  # fmt: skip


def harvest(job: Job, run: Path, record: Path) -> dict[str, Any]:
    """Look at a finished run's last views and write `record`.npz and .jpg; facts of its card."""
    card = json.loads((run / "save" / "model_card.json").read_text(encoding="utf-8"))
    images = last_views(run, job.about["representation"])
    kept = {f"features.{network.name}": network.features(images).half().numpy() for network in _networks}
    kept |= {f"statistics.{name}": values.float().numpy() for name, values in picture_statistics(images).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **kept)
    write_atomic(Path(f"{record}.npz"), buffer.getvalue())
    write_atomic(Path(f"{record}.jpg"), strip(images, None if job.about["representation"] == "2d" else STRIP_VIEWS))
    return {key: card.get(key) for key in FACTS}


def last_views(run: Path, kind: str) -> Tensor:
    """[N, H, W, 3] in [0, 1]: the turntable without the view that repeats the first, or the pictures in their order."""
    suffix = "pictures" if kind == "2d" else "test"
    folders = {int(found[1]): path for path in (run / "save").iterdir() if (found := re.fullmatch(rf"it(\d+)-{suffix}", path.name))}
    if not folders:
        raise DreamMappingError(f"{run} has no last views: save/it*-{suffix} is missing")
    paths = sorted(folders[max(folders)].glob("*.png"), key=_number)
    if kind != "2d":
        paths = paths[:-1]
    return torch.from_numpy(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])).float() / 255


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


def _number(path: Path) -> tuple[int, ...]:
    """Of 12.png, and of 03-a_red_mug-1.png: the picture's number, then the particle's."""
    found = re.fullmatch(r"(\d+)(?:-.*?(?:-(\d+))?)?", path.stem)
    return (int(found[1]), int(found[2] or 0)) if found else (-1, 0)
