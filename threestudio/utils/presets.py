"""Presets: small files beside a config that adapt it to the machine and the weights at hand.

In `<config folder>/presets`, `<preset>.yaml`, then `<preset>/<data_type>.yaml`, `<preset>/<system.geometry_type>.yaml` and
`<preset>/<config name>.yaml` are merged over the config and under the command line; each may be absent. The file of a registered
class also counts for registered classes that derive from it, and comes before theirs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio.errors import ConfigError, PretrainedError
from threestudio.registry import modules
from threestudio.utils.config import load_config_file
from threestudio.utils.files import write_atomic

PRESETS = ("paper", "embedded", "auto")
_TEACHER_KEY = "system.guidance.pretrained_model_name_or_path"
_KIND_KEYS = ("data_type", "system.geometry_type")


@dataclass(frozen=True)
class PresetChoice:
    """Which preset a run takes, why, and the overlay files that make it."""

    requested: str
    taken: str | None
    """None: the config is used as it is."""
    reason: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"Preset: {self.taken} ({self.reason})" if self.taken else f"Preset: none ({self.reason})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Record the choice as JSON."""
        record = {"requested": self.requested, "taken": self.taken, "reason": self.reason}
        record["files"] = [file.as_posix() for file in self.files]
        write_atomic(path, (json.dumps(record, indent=2) + "\n").encode())


def choose_preset(
    requested: str, config_path: str | os.PathLike[str], merged: DictConfig, *, cuda: bool
) -> PresetChoice:
    """Decide on a preset for a config.

    `auto` takes `paper` where CUDA is used and the weights the config names are on this machine, else `embedded`.

    Args:
        requested: paper, embedded or auto.
        merged: the config with the overrides of the command line, from which the teacher's name is read.
        cuda: whether the run will use CUDA.

    Raises:
        ConfigError: `embedded` was asked for, but nothing defines it for this config.
    """
    path = Path(config_path)
    recorded = recorded_preset(path)
    if recorded is not None:
        return _of_resolved(requested, recorded, path)
    if not (path.parent / "presets").is_dir():
        if requested == "embedded":
            raise ConfigError(f"--preset embedded: there is no folder {path.parent / 'presets'} that could define it.")
        return PresetChoice(requested, None, "this config has no presets")
    if requested == "auto":
        taken, reason = _automatic(merged, cuda)
    else:
        taken, reason = requested, "asked for with --preset"
    files = overlay_files(path, taken, merged)
    if taken == "embedded" and not files:
        if requested == "auto":
            return PresetChoice(requested, None, "no preset is defined for this config")
        raise ConfigError(
            f"--preset embedded: neither {' nor '.join(map(str, _candidates(path, taken, merged)))} exists."
        )
    return PresetChoice(requested, taken, reason, tuple(files))


def overlay_files(config_path: Path, preset: str, merged: DictConfig | None = None) -> list[Path]:
    """The overlay files of a preset that exist for a config, in the order they are merged.

    Args:
        merged: the config with the overrides of the command line, which names its data and geometry; None: the file.
    """
    merged = load_config_file(config_path) if merged is None else merged
    return [file for file in _candidates(config_path, preset, merged) if file.is_file()]


def recorded_preset(config_path: Path) -> str | None:
    """The preset a finished `parsed.yaml` was made with, from the record beside it; None for any other config."""
    record = config_path.parent / "preset.json"
    if config_path.name != "parsed.yaml" or not record.is_file():
        return None
    try:
        return json.loads(record.read_text(encoding="utf-8")).get("taken") or "none"
    except (ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"Cannot read {record}: {error}") from error


def _candidates(path: Path, preset: str, merged: DictConfig) -> Sequence[Path]:
    folder = path.parent / "presets"
    kinds = [name for key in _KIND_KEYS for name in _lineage(_selected(merged, key))]
    names = dict.fromkeys((*kinds, path.stem))
    return folder / f"{preset}.yaml", *(folder / preset / f"{name}.yaml" for name in names)


def _lineage(name: str | None) -> list[str]:
    """A name, after those of the classes that the class of this name derives from, where they are registered too."""
    if not name:
        return []
    names = {cls: registered for registered, cls in modules.items()}
    bases = modules[name].__mro__[1:] if name in modules else ()
    return [names[base] for base in reversed(bases) if base in names] + [name]


def _selected(merged: DictConfig, key: str) -> str | None:
    """The text at a key; None where it is missing or cannot be resolved yet."""
    try:
        value = OmegaConf.select(merged, key)
    except OmegaConfBaseException:
        return None
    return None if value is None else str(value)


def _of_resolved(requested: str, recorded: str, path: Path) -> PresetChoice:
    if requested not in ("auto", recorded):
        raise ConfigError(
            f"--preset {requested}: {path} is the resolved config of a run with the preset '{recorded}', "
            "which cannot be exchanged. Start from the original config instead."
        )
    taken = None if recorded == "none" else recorded
    return PresetChoice(requested, taken, "as recorded when the run began")


def _automatic(merged: DictConfig, cuda: bool) -> tuple[str, str]:
    if not cuda:
        return "embedded", "no CUDA GPU is used"
    name = _selected(merged, _TEACHER_KEY)
    if name is None:
        return "paper", "a CUDA GPU is used"
    # Only here: it pulls in libraries that a config without presets does not need.
    from threestudio.utils.pretrained import resolve_pretrained

    try:
        found = resolve_pretrained(name, allow_download=False)
    except PretrainedError:
        return "embedded", f"the weights of {name} are not on this machine; --preset paper fetches them"
    return "paper", f"a CUDA GPU is used and {found.name} is on this machine"
