"""Reading a Stable-Diffusion-layout model: where it is, its parts, its hash, and messages for what can go wrong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..distillation.noise_schedule import NoiseSchedule
from ..errors import TeacherError

P = TypeVar("P")


@dataclass(frozen=True)
class Source:
    """Where a teacher's files are."""

    name: str
    """As the config says."""
    location: str
    """A folder, or a hub name that the loading library resolves."""
    fingerprint: str
    """sha256 over the weight files, or empty."""


def locate(name: str) -> Source:
    """The files of `name` (folder or hub name), through the framework's resolver where there is one."""
    if not name:
        raise TeacherError("system.guidance.pretrained_model_name_or_path is empty; give a folder or a hub name")
    try:
        from threestudio.utils.pretrained import resolve_pretrained
    except ImportError:  # the original threestudio has none
        return Source(name, name, _folder_fingerprint(Path(name)))
    found = resolve_pretrained(name)
    return Source(name, str(found.path), found.fingerprint or "")


def load_part(cls: type[P], source: Source, part: str, **options: Any) -> P:
    """`cls.from_pretrained(location, subfolder=part)`; TeacherError names a part that is missing or damaged."""
    folder = Path(source.location)
    if folder.is_dir() and not (folder / part).is_dir():
        raise TeacherError(
            f"{source.name} ({folder}) has no {part}/ folder; "
            "a teacher is a Stable Diffusion folder with unet, vae and scheduler"
        )
    if (folder / part).is_dir() and "use_safetensors" in options:
        options["variant"] = _variant(folder / part)
    try:
        return cls.from_pretrained(source.location, subfolder=part, **options)
    except ImportError:
        raise
    except Exception as problem:  # each library version and file damage raises its own type
        raise TeacherError(
            f"cannot load the {part} of {source.name} from {source.location}: {_first_line(problem)}. "
            "If the files are incomplete, delete that folder (or its cache entry) and fetch the model again; "
            "weights must be .safetensors"
        ) from problem


def load_denoiser(source: Source, dtype: torch.dtype) -> tuple[Any, NoiseSchedule, str]:
    """U-Net, noise schedule and prediction type (diffusers' name) of a model."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    scheduler = load_part(DDIMScheduler, source, "scheduler")
    unet = load_part(UNet2DConditionModel, source, "unet", torch_dtype=dtype, use_safetensors=True)
    return unet, NoiseSchedule(scheduler.alphas_cumprod), scheduler.config.prediction_type


def _variant(folder: Path) -> str | None:
    """`fp16` if the folder holds only the half-precision copy of its weights."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else 'no message'}".rstrip(".")


def _folder_fingerprint(folder: Path) -> str:
    """sha256 over the weight files (name and content hash each); empty for anything but a folder.

    The same rule as threestudio.utils.pretrained's, so that a teacher has one hash with and without that module.
    """
    if not folder.is_dir():
        return ""
    total = hashlib.sha256()
    for file in [f for place in (folder, *sorted(folder.iterdir())) if place.is_dir() for f in _weight_files(place)]:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        total.update(f"{file.relative_to(folder).as_posix()} {digest.hexdigest()}\n".encode())
    return total.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """The files a loader would take: no variants beside a full version, no pickles beside safetensors."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return [f for f in files if not any(variant in f.name for variant in ("fp16", "non_ema"))] or files
    return []
