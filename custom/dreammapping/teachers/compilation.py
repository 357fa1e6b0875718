"""torch.compile with a memory: what was compiled for a network is kept on disk and loaded at the next start."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..files import write_atomic

MODES = ("default", "max-autotune-no-cudagraphs")
"""torch's modes without CUDA graphs: those are made elsewhere (replay.py), around more than the network."""

DIGEST_BYTES = 32


def compile_mode(value: bool | str | None) -> str | None:
    """torch.compile's mode for a setting `compile_unet`: false (None), true (the default) or the mode's name.

    Raises ConfigError for another word.
    """
    if value is None or value is False:
        return None
    if value is True:
        return MODES[0]
    if value not in MODES:
        raise ConfigError(f"system.guidance.compile_unet is {value!r}; it must be false, true or {' or '.join(MODES)}")
    return value


def cache_folder() -> Path:
    """Where compiled code is kept: dreammapping/compiled in the user's cache folder."""
    local = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(local) if local else Path.home() / ".cache") / "dreammapping" / "compiled"


class Compiled:
    """A network under torch.compile, called as the network itself.

    At the first call it takes over what an earlier process compiled for the same network on the same GPU and versions,
    and after each call with new shapes it saves what is new. A file that cannot be read or written is no reason to
    stop: one warning says so.
    """

    def __init__(self, network: Any, mode: str, folder: Path | None = None) -> None:
        self._run, self._known = torch.compile(network, mode=mode), set()
        self._file = (folder or cache_folder()) / f"{_key(network, mode)}.bin"
        self._on_disk: set[tuple[str, str]] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        shapes = tuple((x.shape, x.dtype) for x in tensors)
        if shapes in self._known:
            return self._run(*args, **kwargs)
        if not self._known:
            self._load()
        result = self._run(*args, **kwargs)
        self._known.add(shapes)
        self._save()
        return result

    def _load(self) -> None:
        if not hasattr(torch.compiler, "load_cache_artifacts") or not self._file.is_file():
            return
        try:
            content = self._file.read_bytes()
        except OSError as problem:
            return _without_cache(self._file, str(problem))
        digest, artifacts = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(artifacts).digest() != digest:  # torch would print a traceback
            return _without_cache(self._file, "it is damaged and will be written anew")
        found = torch.compiler.load_cache_artifacts(artifacts)
        self._on_disk = set() if found is None else _names(found)

    def _save(self) -> None:
        if not hasattr(torch.compiler, "save_cache_artifacts"):
            return
        saved = torch.compiler.save_cache_artifacts()
        if saved is None or _names(saved[1]) <= self._on_disk:
            return
        artifacts, info = saved
        try:
            write_atomic(self._file, hashlib.sha256(artifacts).digest() + artifacts)
        except OSError as problem:
            _without_cache(self._file, str(problem))
        self._on_disk = _names(info)  # also after a failure: one warning is enough


def _names(info: Any) -> set[tuple[str, str]]:
    return {(kind, name) for kind, names in info.artifacts.items() for name in names}


def _key(network: Any, mode: str) -> str:
    """Name of the file for a network's shape, dtype and device, this torch and triton. The weights do not matter."""
    weight = next(network.parameters())
    triton = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        triton = importlib.metadata.version("triton")
    card = torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else weight.device.type
    shapes = [(name, tuple(p.shape), str(p.dtype), p.stride()) for name, p in network.named_parameters()]
    told = [type(network).__name__, mode, torch.__version__, torch.version.cuda, triton, card, shapes]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _without_cache(file: Path, why: str) -> None:
    warnings.warn(f"the compiled network in {file} is not used: {why}")
