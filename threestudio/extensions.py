"""Finding and importing the extensions in custom/.

An entry is a folder with an `__init__.py` or a single `.py` file. Entries whose name ends in `_disabled` are skipped.
A folder becomes the module of its own name (hyphens allowed), so relative imports work inside it.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Extension:
    """One imported (or failed) extension."""

    name: str
    path: Path
    seconds: float
    cause: str | None = None
    """None when the import worked; else the exception and the place it was raised."""
    details: str | None = None
    """The whole traceback of a failed import."""


_attempted: dict[Path, Extension] = {}


def failures() -> list[Extension]:
    """The extensions whose import failed so far in this process."""
    return [extension for extension in _attempted.values() if extension.cause is not None]


def load_extensions(folder: str | Path = "custom") -> list[Extension]:
    """Import every extension in `folder` in alphabetical order; a failing one is recorded, the others go on.

    Entries that were attempted before in this process are not imported again. A missing folder holds no extensions.
    """
    root = Path(folder).resolve()
    loaded = []
    for entry in _entries(root):
        if entry not in _attempted:
            _attempted[entry] = _load(entry)
        loaded.append(_attempted[entry])
    return loaded


def describe(extensions: Iterable[Extension]) -> str:
    """A table of names, import times and failures; empty when there are none."""
    rows = []
    for extension in extensions:
        mark = "" if extension.cause is None else f"  (IMPORT FAILED) {extension.cause}"
        rows.append(f"{extension.seconds:7.1f} s  {extension.name}{mark}")
    return "\n".join(["Extensions:", *rows]) if rows else ""


def _entries(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [entry for entry in sorted(root.iterdir()) if _is_extension(entry)]


def _is_extension(entry: Path) -> bool:
    if entry.name.startswith((".", "__")) or entry.stem.endswith("_disabled") or entry.name.endswith("_disabled"):
        return False
    if entry.is_dir():
        return any(entry.glob("*.py"))  # a folder of data or a leftover __pycache__ is nothing to report
    return entry.suffix == ".py"


def _load(entry: Path) -> Extension:
    name = entry.name if entry.is_dir() else entry.stem
    start = time.perf_counter()
    try:
        _import(name, entry)
    except Exception as error:  # a broken extension must not stop runs that do not need it
        seconds = time.perf_counter() - start
        return Extension(name, entry, seconds, _cause(error, entry), traceback.format_exc())
    return Extension(name, entry, time.perf_counter() - start)


def _import(name: str, entry: Path) -> ModuleType:
    source = entry / "__init__.py" if entry.is_dir() else entry
    present = sys.modules.get(name)
    if present is not None:
        if Path(getattr(present, "__file__", None) or "").resolve() == source.resolve():
            return present
        origin = getattr(present, "__file__", "elsewhere")
        raise ImportError(f"a module named '{name}' is loaded already, from {origin}")
    if not source.is_file():
        raise ImportError(f"{source} does not exist")
    search = [str(entry)] if entry.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=search)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution, as relative imports need it
    spec.loader.exec_module(module)
    return module


def _cause(error: Exception, entry: Path) -> str:
    """The exception with the extension's own line nearest to it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    text = f"{type(error).__name__}: {error}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if str(entry) in frame.filename]
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text
