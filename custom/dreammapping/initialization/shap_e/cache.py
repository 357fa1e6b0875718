"""Meshes on disk, so that a prompt is drawn once: one safetensors file for each set of things a mesh depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import write_atomic
from ..mesh import ColoredMesh

FORMAT = 1
"""To be raised when the same inputs give another mesh, or the file another layout."""
FOLDER = Path(".threestudio_cache") / "shap_e"
_LOG = logging.getLogger("pytorch_lightning")  # threestudio's, under its own name


class MeshCache:
    """Where the mesh of `inputs` is kept. Processes that share a folder at most do the same work twice."""

    def __init__(self, folder: str | None, inputs: Mapping[str, Any]) -> None:
        """`folder`: None for the default. `inputs`: everything the mesh depends on, as JSON can write it."""
        self.text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(self.text.encode()).hexdigest()
        self.file = (Path(folder).expanduser() if folder else FOLDER) / f"{key[:32]}.safetensors"

    def read(self) -> ColoredMesh | None:
        """The mesh, or None if there is none or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        if not self.file.is_file():
            return None
        try:
            with safe_open(str(self.file), framework="pt") as stored:
                if (stored.metadata() or {}).get("inputs") != self.text:
                    raise ValueError("it belongs to other inputs")
                mesh = ColoredMesh(*(stored.get_tensor(name) for name in ("vertices", "faces", "colors")))
            mesh.check()
        except (OSError, ValueError, SafetensorError) as problem:
            _LOG.warning(f"The cached mesh {self.file} is damaged ({problem}) and is made again.")
            return None
        return mesh

    def write(self, mesh: ColoredMesh) -> None:
        """Keep a mesh. A folder that cannot be written costs only time, so that is no error but a warning."""
        from safetensors.torch import save

        tensors = {name: getattr(mesh, name).contiguous() for name in ("vertices", "faces", "colors")}
        try:
            write_atomic(self.file, save(tensors, metadata={"inputs": self.text}))
        except OSError as problem:
            _LOG.warning(f"The mesh could not be kept in {self.file}: {problem}")
