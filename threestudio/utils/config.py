"""Configuration: YAML files and dotted overrides become one checked `ExperimentConfig`; parts parse theirs from it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import Any, Optional

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio.errors import ConfigError
from threestudio.utils.files import write_atomic
from threestudio.utils.overrides import apply_overrides
from threestudio.utils.schedules import C_max
from threestudio.utils.structured import parse_structured

__all__ = [
    "C_max",
    "ExperimentConfig",
    "config_to_primitive",
    "dump_config",
    "finish_config",
    "load_config",
    "load_config_file",
    "merge_config",
    "missing_values_error",
    "parse_structured",
]

_RESOLVERS = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": lambda path: os.path.basename(path),
    "rmspace": lambda text, substitute: str(text).replace(" ", substitute),
    "tuple2": lambda value: [float(value), float(value)],
    "gt0": lambda value: value > 0,
    "cmaxgt0": lambda value: C_max(value) > 0,
    "cmaxgt0orcmaxgt0": lambda a, b: C_max(a) > 0 or C_max(b) > 0,
    "not": lambda value: not value,
}
# omegaconf 2.4 renamed the function to a name that in 2.3 is an older one's, without `replace`.
_renamed = "replace" in signature(OmegaConf.register_resolver).parameters
_register = OmegaConf.register_resolver if _renamed else OmegaConf.register_new_resolver
for _name, _resolver in _RESOLVERS.items():
    _register(_name, _resolver, replace=True)

_UNSAFE_IN_NAMES = re.compile(r'[<>:"|?*\x00-\x1f\\/]')
_LONGEST_TAG = 120


@dataclass
class ExperimentConfig:
    """One run. Creating it touches no disk; the launcher makes the trial folder when the run starts."""

    name: str = "default"
    description: str = ""
    tag: str = ""
    seed: int = 0
    use_timestamp: bool = True
    timestamp: Optional[str] = None
    """The end of the trial's name, `@YYYYMMDD-HHMMSS`; None computes it, a string (even an empty one) is kept."""
    exp_root_dir: str = "outputs"
    exp_dir: str = ""
    """Derived: exp_root_dir/name."""
    trial_name: str = ""
    """Derived: tag + timestamp, with characters that are no part of file names replaced."""
    trial_dir: str = ""
    """Derived: exp_dir/trial_name."""
    n_gpus: int = 1
    resume: Optional[str] = None
    data_type: str = ""
    data: dict = field(default_factory=dict)
    system_type: str = ""
    system: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    """Keyword arguments of Lightning's Trainer."""
    checkpoint: dict = field(default_factory=dict)
    """Keyword arguments of Lightning's ModelCheckpoint."""

    def __post_init__(self) -> None:
        if not self.tag and not self.use_timestamp:
            raise ConfigError("Either tag must be set or use_timestamp must be true; else the trial has no name.")
        if self.timestamp is None:
            # Processes of one run would disagree about the second, so with several GPUs there is no timestamp.
            stamped = self.use_timestamp and self.n_gpus <= 1
            self.timestamp = datetime.now().strftime("@%Y%m%d-%H%M%S") if stamped else ""
        self.trial_name = _UNSAFE_IN_NAMES.sub("_", self.tag)[:_LONGEST_TAG] + self.timestamp
        if not self.trial_name:
            raise ConfigError("The trial has no name: with several GPUs there is no timestamp, so set tag.")
        self.exp_dir = os.path.join(self.exp_root_dir, self.name)
        self.trial_dir = os.path.join(self.exp_dir, self.trial_name)


def load_config(
    *yamls: str | os.PathLike[str], cli_args: Sequence[str] = (), from_string: bool = False, **kwargs: Any
) -> DictConfig:
    """Merge YAML files (or strings), then `a.b=value` overrides, then keyword arguments, into an `ExperimentConfig`.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, or an interpolation that leads nowhere.
    """
    merged = merge_config(*yamls, cli_args=cli_args, from_string=from_string)
    return finish_config(merged, **kwargs)


def merge_config(
    *yamls: str | os.PathLike[str], cli_args: Sequence[str] = (), from_string: bool = False
) -> DictConfig:
    """The merged files and overrides with interpolations unresolved; later ones win.

    Where a later file gives a block another `type`, its block replaces the earlier one: keys of one type mean nothing
    to another.
    """
    parts = [_parse_yaml(entry) if from_string else load_config_file(entry) for entry in yamls]
    try:
        merged = OmegaConf.create()
        for part in parts:
            plain = (OmegaConf.to_container(config, resolve=False) for config in (merged, part))
            merged = OmegaConf.merge(_without_retyped(*plain), part)
    except OmegaConfBaseException as error:
        raise ConfigError(f"The files {', '.join(map(str, yamls))} cannot be merged: {error}") from error
    apply_overrides(merged, cli_args)
    return merged


def _without_retyped(old: dict, new: dict) -> dict:
    """`old` with every block emptied to which `new` gives another `type`."""
    kept = dict(old)
    for key, block in old.items():
        other = new.get(key)
        if isinstance(block, dict) and isinstance(other, dict):
            retyped = "type" in block and "type" in other and block["type"] != other["type"]
            kept[key] = {} if retyped else _without_retyped(block, other)
    return kept


def finish_config(merged: DictConfig, **kwargs: Any) -> DictConfig:
    """Resolve all interpolations and check the top level against `ExperimentConfig`."""
    merged = OmegaConf.merge(merged, kwargs)
    try:
        OmegaConf.resolve(merged)
    except OmegaConfBaseException as error:
        missing = missing_values_error(merged)
        if missing is not None:
            raise missing from error
        raise ConfigError(f"{error.full_key or 'config'}: {_first_line(error)}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"A resolver in the config failed: {error}") from error
    return parse_structured(ExperimentConfig, merged)


def missing_values_error(config: DictConfig) -> ConfigError | None:
    """An error naming every key that is still `???` and the overrides to type; None when all are set."""
    keys = sorted(_missing_keys(OmegaConf.to_container(config, resolve=False), ""))
    if not keys:
        return None
    values = " ".join(f'{key}="a red apple"' if key.endswith("prompt") else f"{key}=VALUE" for key in keys)
    verb = "is" if len(keys) == 1 else "are"
    return ConfigError(f"{', '.join(keys)} {verb} not set. Add to the command line: {values}")


def _missing_keys(node: Any, path: str) -> list[str]:
    """Paths of the `???` below `node`; by hand, as OmegaConf's own search stumbles over broken interpolations."""
    if node == "???":
        return [path]
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [key for name, child in pairs for key in _missing_keys(child, f"{path}.{name}" if path else str(name))]


def config_to_primitive(config: Any, resolve: bool = True) -> Any:
    """The config as plain dicts, lists and scalars."""
    return OmegaConf.to_container(config, resolve=resolve)


def dump_config(path: str | os.PathLike[str], config: Any) -> None:
    """Write a config as YAML; the file is whole or absent."""
    write_atomic(path, OmegaConf.to_yaml(config).encode())


def load_config_file(path: str | os.PathLike[str]) -> DictConfig:
    """One YAML file with interpolations unresolved and keys unchecked; ConfigError if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"There is no config file {path}.{_configs_beside(Path(path))}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the config {path}: {error}") from error
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str | os.PathLike[str], where: str = "The given text") -> DictConfig:
    try:
        config = OmegaConf.create(str(text))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{where} must hold a mapping of keys to values at its top level.")
    return config


def _configs_beside(path: Path) -> str:
    names = sorted(entry.name for entry in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return f" In {path.parent} are: {', '.join(names[:12])}." if names else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
