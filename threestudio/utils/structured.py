"""`parse_structured`: a mapping checked against a dataclass, with schedules allowed where a number is expected."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Union

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio.errors import ConfigError, suggest
from threestudio.utils.schedules import schedule_problem


_SCALARS = {str, int, float, bool}


def parse_structured(fields: Any, cfg: Any = None) -> DictConfig:
    """Check `cfg` against the dataclass `fields`; the result is a DictConfig that refuses unknown attributes.

    A field of type int or float also takes a schedule (a list, see `threestudio.utils.schedules`), and one of type
    `Union[float, str]` takes an int. `cfg` is a DictConfig or a plain mapping; None stands for an empty one.

    Raises:
        ConfigError: unknown key, wrong type or a value still missing (`???`), with the class and the key.
    """
    config = _as_config(cfg, fields)
    known = {field.name for field in dataclasses.fields(fields)}
    for key in config:
        if key not in known:
            raise ConfigError(f"{_where(config, key)} is unknown to {class_name(fields)}. {suggest(str(key), known)}")
    hints = typing.get_type_hints(fields)
    values = {key: _value(config, key, hints[key], fields) for key in config}
    try:
        return OmegaConf.structured(fields(**values))
    except OmegaConfBaseException as error:
        key = _first_key(error)
        if not key:
            raise ConfigError(f"{class_name(fields)}: {str(error).splitlines()[0]}") from error
        raise ConfigError(_type_message(config, key, values.get(key), hints.get(key), fields)) from error
    except TypeError as error:  # a required field without a value
        raise ConfigError(f"{class_name(fields)}: {error}") from error


def class_name(fields: Any) -> str:
    """`GuidanceConfig` or, for the nested `Config` of a part, `Guidance.Config`."""
    qualified = getattr(fields, "__qualname__", type(fields).__qualname__)
    return qualified.rsplit("<locals>.", 1)[-1]


def _as_config(cfg: Any, fields: Any) -> DictConfig:
    if cfg is None:
        return OmegaConf.create({})
    if isinstance(cfg, DictConfig):
        return cfg
    if isinstance(cfg, Mapping):
        return OmegaConf.create(dict(cfg))
    if dataclasses.is_dataclass(cfg) and not isinstance(cfg, type):
        return OmegaConf.structured(cfg)
    raise ConfigError(f"{class_name(fields)} needs a mapping of keys to values, not {type(cfg).__name__} {cfg!r}.")


def _value(config: DictConfig, key: str, hint: Any, fields: Any) -> Any:
    where = _where(config, key)
    if OmegaConf.is_missing(config, key):
        raise ConfigError(f"{where} is not set ({class_name(fields)}). Add to the command line: {where}=VALUE")
    try:
        value = config[key]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error
    options = _options(hint)
    if isinstance(value, ListConfig) and _takes_schedules(options):
        problem = schedule_problem(list(value))
        if problem:
            raise ConfigError(f"{where} is {list(value)}, which is neither a number nor a schedule: {problem}")
        return value  # a config node passes the type check of the float field
    if isinstance(value, DictConfig) and any(dataclasses.is_dataclass(option) for option in options):
        return value  # taken over unchecked, as threestudio does; the part it configures checks it
    if (value is None or isinstance(value, (DictConfig, ListConfig))) and set(options) <= _SCALARS:
        raise ConfigError(_type_message(config, key, value, hint, fields))  # before a __post_init__ trips over it
    if isinstance(value, (DictConfig, ListConfig)):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, (int, float)) and str in options and not set(options) & {int, float, bool}:
        return str(value)  # a tag or prompt that looks like a number
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)  # OmegaConf refuses an int for Union[float, str]
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type hint: those of a Union (None included), else the hint itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _takes_schedules(options: tuple[Any, ...]) -> bool:
    numbers = float in options or int in options
    return numbers and not any(typing.get_origin(option) in (list, tuple) for option in options)


def _first_key(error: OmegaConfBaseException) -> str:
    return str(error.full_key or error.key or "").split(".", 1)[0].split("[", 1)[0]


def _type_message(config: DictConfig, key: str, value: Any, hint: Any, fields: Any) -> str:
    message = f"{_where(config, key)} is {value!r}; {class_name(fields)} expects {_hint_name(hint)} there."
    if value is None:
        message += " An empty YAML value means null: leave the key out, or write {} for an empty mapping."
    return message


def _hint_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _where(config: DictConfig, key: Any) -> str:
    """The path of `key` from the root of the config it belongs to."""
    try:
        return config._get_full_key(key) or str(key)
    except (OmegaConfBaseException, AttributeError):
        return str(key)
