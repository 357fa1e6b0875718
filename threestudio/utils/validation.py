"""Checks a whole run's config against the classes it names, before anything is built or loaded."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable

from omegaconf import DictConfig
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from threestudio.errors import ConfigError, RegistryError, suggest
from threestudio.registry import find, modules
from threestudio.utils.config import missing_values_error, parse_structured

_OWN_TRAINER_KEYS = ("callbacks", "logger", "plugins", "inference_mode")
_OWN_CHECKPOINT_KEYS = ("dirpath",)


def check_run(config: DictConfig) -> None:
    """Every name must be registered, every key known to the class that will read it, every value of its type.

    `config` is an ExperimentConfig. Checked are `system` and `data` with everything nested in them as a pair
    `<part>_type` and `<part>`, and the keyword arguments in `trainer` and `checkpoint`.

    Raises:
        ConfigError, RegistryError: the first problem, with the path of the key and the nearest known names.
    """
    missing = missing_values_error(config)
    if missing is not None:
        raise missing
    for part in ("data", "system"):
        name = config[f"{part}_type"]
        if not name:
            raise ConfigError(f"{part}_type is not set: the config must name the class of its {part}.")
        check_part(name, config[part], f"{part}_type")
    check_keywords(config.trainer, Trainer, "trainer", _OWN_TRAINER_KEYS)
    check_keywords(config.checkpoint, ModelCheckpoint, "checkpoint", _OWN_CHECKPOINT_KEYS)


def check_part(name: str, config: DictConfig, where: str) -> None:
    """Check the config of the class registered as `name`, and of the parts it names; `where` is the key of the name."""
    try:
        cls = find(name)
    except RegistryError as error:
        raise RegistryError(f"{where}: {error}") from error
    fields = config_class(cls)
    if fields is None:
        return  # the class reads its config in a way only it knows
    parsed = parse_structured(fields, config)
    names = {field.name for field in dataclasses.fields(fields)}
    for part in sorted(names):
        type_key = f"{part}_type"
        if type_key not in names or not isinstance(parsed[part], DictConfig) or not parsed[type_key]:
            continue
        prefix = where.removesuffix("_type")
        given = type_key in config or part in config
        if given or parsed[type_key] in modules:
            check_part(parsed[type_key], config.get(part, {}), f"{prefix}.{type_key}")


def config_class(cls: type) -> type | None:
    """The dataclass of a class's config: its `Config`, else the annotation of its attribute `cfg`, else None."""
    nested = getattr(cls, "Config", None)
    if dataclasses.is_dataclass(nested):
        return nested
    try:
        annotated = typing.get_type_hints(cls).get("cfg")
    except (NameError, TypeError, AttributeError):  # annotations only a type checker can read
        return None
    return annotated if dataclasses.is_dataclass(annotated) else None


def check_keywords(config: DictConfig, cls: type, section: str, own: Iterable[str]) -> None:
    """Every key of a section must be a keyword of the class's constructor, and not one the launcher gives itself."""
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self" and name not in own]
    for key in config:
        if key in own:
            raise ConfigError(f"{section}.{key} is set by the launcher itself; remove it from the config.")
        if key not in known:
            raise ConfigError(f"{section}.{key} is unknown to {cls.__name__}. {suggest(key, known)}")


