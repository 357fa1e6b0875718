"""Reading a model in diffusers' folder layout: where it is, its parts, its hash, and messages for what can go wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
    """`cls.from_pretrained(location, subfolder=part)`; TeacherError names a part that is missing or damaged.

    `part` is empty for a folder that holds one model and no parts."""
    folder = Path(source.location) / part
    if folder.is_dir() and "use_safetensors" in options:
        options["variant"] = only_variant(folder)
    with _problems_named(source, part):
        return cls.from_pretrained(source.location, subfolder=part, **options)


def load_config(cls: type, source: Source, part: str) -> dict[str, Any]:
    """The configuration file of a part, a diffusers class `cls`, as it is."""
    with _problems_named(source, part):
        return cls.load_config(source.location, subfolder=part)


def pipeline_class(source: Source) -> str:
    """The pipeline a model belongs to: what its model_index.json says or, in a folder without one, its network."""
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    folder = Path(source.location)
    if not folder.is_dir() or (folder / "model_index.json").is_file():
        with _problems_named(source, "model_index.json"):
            return str(DiffusionPipeline.load_config(source.location)["_class_name"])
    config = load_config(UNet2DConditionModel, source, "transformer" if (folder / "transformer").is_dir() else "unet")
    if config.get("_class_name") == "UNet2DConditionModel":
        return f"StableDiffusion{'XL' if config.get('addition_embed_type') == 'text_time' else ''}Pipeline"
    name = str(config.get("_class_name"))
    return "StableDiffusion3Pipeline" if name == "SD3Transformer2DModel" else f"folder with a {name}"


@contextmanager
def _problems_named(source: Source, part: str) -> Iterator[None]:
    """TeacherErrors instead of whatever the library raises for a part that is missing or damaged."""
    folder = Path(source.location)
    if folder.is_dir() and not (folder / part).exists():
        raise TeacherError(
            f"{source.name} ({folder}) has no {part}/ folder; "
            "a teacher is a folder in diffusers' layout, with vae, scheduler and unet (or transformer)"
        )
    try:
        yield
    except ImportError:
        raise
    except Exception as problem:  # each library version and file damage raises its own type
        raise TeacherError(
            f"cannot load {f'the {part} of ' if part else ''}{source.name} from {source.location}: {_first_line(problem)}. "
            "If the files are incomplete, delete that folder (or its cache entry) and fetch the model again; "
            "weights must be .safetensors"
        ) from problem


def only_variant(folder: Path) -> str | None:
    """`fp16` if the folder holds only the half-precision copy of its weights."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name or ".fp16-" in name for name in names) else None


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
