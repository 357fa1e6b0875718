"""Settings: a dataclass filled from a mapping, strictly.

The dataclass is the documentation of a config block: its fields are the keys, its defaults the defaults. An unknown
key or a value of the wrong type is an error that names the full dotted path.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from .errors import ConfigError, suggest

T = TypeVar("T")


def parse_settings(cls: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """Build the dataclass `cls` from `values`: a mapping (OmegaConf's too), an instance, or None for the defaults.

    `where` is the dotted path of this block in the config, used in messages. Nested dataclasses, enums, Literal,
    Optional, unions, lists, tuples and dicts are understood; int is accepted for float, a list for a tuple, an enum's
    value for the enum. Raises ConfigError for an unknown or missing key and for a value of the wrong type.
    """
    if isinstance(values, cls):
        return values
    values = to_plain(values)
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a block of keys, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}.{key} is not a known key; {suggest(str(key), fields)}")
    hints = typing.get_type_hints(cls)
    filled: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            filled[name] = _convert(hints[name], values[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name} must be given")
    try:
        return cls(**filled)
    except ConfigError:
        raise
    except ValueError as problem:  # raised by a __post_init__ that checks ranges
        raise ConfigError(f"{where}: {problem}") from problem


def to_plain(values: Any) -> Any:
    """OmegaConf containers to dicts and lists (interpolations resolved); anything else unchanged."""
    if type(values).__module__.split(".")[0] == "omegaconf":
        from omegaconf import OmegaConf

        return OmegaConf.to_container(values, resolve=True)
    return values


def _convert(hint: Any, value: Any, where: str) -> Any:
    value = to_plain(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(repr(a) for a in args)}")
    if dataclasses.is_dataclass(hint):
        return parse_settings(hint, value, where)
    if origin is None and isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise ConfigError(
                f"{where} is {value!r}; it must be one of {', '.join(repr(m.value) for m in hint)}"
            ) from None
    container = origin or hint
    if container in (tuple, list) or container is Sequence:
        return _convert_sequence(container, args, value, where)
    if container in (dict, Mapping):
        return _convert_mapping(args, value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(args: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None)]
    # An exact type wins over a convertible one: `float | int` keeps an int an int.
    for option in options:
        if isinstance(option, type) and type(value) is option:
            return value
    for option in options:
        try:
            return _convert(option, value, where)
        except ConfigError as problem:
            last = problem
    if len(options) == 1:
        raise last
    raise ConfigError(f"{where} is {value!r}; it must be {' or '.join(_name(a) for a in args)}")


def _convert_sequence(container: Any, args: tuple, value: Any, where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {value!r}; it must be a list")
    if container is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise ConfigError(f"{where} has {len(value)} entries; it must have {len(args)}")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    inner = args[0] if args else Any
    items = [_convert(inner, v, f"{where}[{i}]") for i, v in enumerate(value)]
    return tuple(items) if container is tuple else items


def _convert_mapping(args: tuple, value: Any, where: str) -> dict:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; it must be a block of keys")
    inner = args[1] if args else Any
    return {k: _convert(inner, v, f"{where}.{k}") for k, v in value.items()}


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    fits = isinstance(value, hint) if isinstance(hint, type) else True
    if not fits or (isinstance(value, bool) and hint in (int, float)):
        raise ConfigError(f"{where} is {value!r}; it must be {_name(hint)}")
    return value


def _name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
