"""Where the files of a Shap-E are, which of them are read, and what tells them from others.

openai/shap-e has, of its diffusion model and text encoder, .safetensors in half precision only, and its renderer as a
.bin only. Such a .bin is read as plain tensors (torch's `weights_only`), so nothing in it can be executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import ConfigError

PIPELINE = "ShapEPipeline"
OPENAI = "openai/shap-e"
PARTS = ("prior", "text_encoder", "shap_e_renderer")
"""Folders with weights."""
DOWNLOADED = ("*.json", "tokenizer/*", "scheduler/*", "prior/*.safetensors", "text_encoder/*.safetensors", "shap_e_renderer/*")
"""Patterns of the files to get; the .bin of the first two would double them."""
WAY_ON = "To start without Shap-E: system.geometry.init.type=sphere"


@dataclass(frozen=True)
class Weights:
    """A Shap-E on disk, all its parts there."""

    name: str
    """As the config says."""
    folder: Path

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and contents of all files that are read: equal for equal models, wherever they lie."""
        total = hashlib.sha256()
        for file in used_files(self.folder):
            total.update(f"{file.relative_to(self.folder).as_posix()} {_content_hash(file)}\n".encode())
        return total.hexdigest()


def find_weights(model: str) -> Weights:
    """The files of `model`: a folder, else the Hugging Face cache, else fetched from the hub.

    Raises:
        ConfigError: not found (with what was tried and the command that gets them), incomplete, or another kind of model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        folder, tried = folder.resolve(), []
    else:
        tried = [f"folder {folder.absolute()}: does not exist"]
        found = _from_hub(model, tried) if _is_repository(model) else None
        if found is None:
            raise ConfigError(_not_found(model, tried))
        folder = found
    _check_kind(model, folder)
    missing = _missing(folder)
    if missing:
        raise ConfigError(f"The Shap-E model {model} ({folder}) has no {missing}. Get it again with: {_command(model)}\n{WAY_ON}")
    return Weights(model, folder)


def used_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer and weight files, as the loader takes them, sorted."""
    small = [folder / "model_index.json", *(folder / part / "config.json" for part in PARTS)]
    small += [file for part in ("tokenizer", "scheduler") for file in (folder / part).glob("*") if file.is_file()]
    return sorted([*filter(Path.is_file, small), *(file for part in PARTS for file in weight_files(folder / part))])


def weight_files(part: Path) -> list[Path]:
    """The weights of one part: .safetensors rather than .bin, in full precision rather than half."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(part.glob(pattern))
        if files:
            return [file for file in files if ".fp16" not in file.name] or files
    return []


# ---------------------------------------------------------------------- inside


def _from_hub(model: str, tried: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):
        tried.append("Hugging Face cache: not there")
    else:
        if (folder / "model_index.json").is_file():
            _check_kind(model, folder)
        missing = _missing(folder)
        if not missing:
            return folder
        tried.append(f"Hugging Face cache: has no {missing}")
    if any(os.environ.get(name, "").lower() in ("1", "on", "yes", "true") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        tried.append("download: switched off by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE")
        return None
    try:
        return Path(snapshot_download(model, allow_patterns=list(DOWNLOADED)))
    except Exception as problem:  # the hub's client speaks through several libraries, each with its own errors
        lines = str(problem).strip().splitlines()
        tried.append(f"download: {type(problem).__name__}: {lines[0] if lines else 'no message'}")
        return None


def _is_repository(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner and model) and "/" not in model and not name.startswith((".", "~"))


def _not_found(model: str, tried: list[str]) -> str:
    lines = "\n".join(f"  {line}" for line in tried)
    return f"The Shap-E model {model!r} was not found. Tried:\n{lines}\nGet it with: {_command(model)}\n{WAY_ON}"


def _command(model: str) -> str:
    """What gets the weights: OpenAI's, where `model` names no other repository."""
    if not _is_repository(model) or Path(model).exists() or model == OPENAI:
        return f'hf download {OPENAI} --exclude "[prt]*.bin"   (2.2 GB; pip install huggingface_hub)'
    return f"hf download {model}   (pip install huggingface_hub), or take shap_e.model={OPENAI}"


def _check_kind(model: str, folder: Path) -> None:
    """Refuse a folder of another pipeline, before anything is loaded."""
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(
            f"{model} ({folder}) is no {PIPELINE}: its model_index.json is missing or damaged ({type(problem).__name__}). "
            f"Give a folder as diffusers saves it, or openai/shap-e. {WAY_ON}"
        ) from problem
    if kind != PIPELINE:
        why = "it makes objects of pictures, not of texts" if kind == "ShapEImg2ImgPipeline" else "which makes no meshes of texts"
        raise ConfigError(f"{model} ({folder}) is a {kind}: {why}. system.geometry.init.shap_e.model must be a {PIPELINE}, such as openai/shap-e")


def _missing(folder: Path) -> str:
    """The first thing that the folder lacks, or an empty text."""
    if not (folder / "model_index.json").is_file():
        return "model_index.json"
    for part in PARTS:
        if not (folder / part / "config.json").is_file():
            return f"{part}/config.json"
        if not weight_files(folder / part):
            return f"weights in {part}/"
    return next((f"{part}/" for part in ("tokenizer", "scheduler") if not (folder / part).is_dir()), "")


def _content_hash(file: Path) -> str:
    """sha256 of a file's content. Large files in the Hugging Face cache carry it as their name."""
    target = file.resolve()
    if target.parent.name == "blobs" and len(target.name) == 2 * hashlib.sha256().digest_size:
        return target.name
    digest = hashlib.sha256()
    with target.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
