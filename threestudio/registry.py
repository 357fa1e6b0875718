"""The one table of names: data modules, systems, models and losses are found here by the string in a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from threestudio import extensions
from threestudio.errors import DuplicateNameError, RegistryError, suggest

T = TypeVar("T", bound=type)

modules: dict[str, type] = {}
"""Registered name -> class. `threestudio.__modules__` is this dictionary."""

_composites: dict[tuple[type, ...], type] = {}


def register(name: str) -> Callable[[T], T]:
    """Class decorator that stores the class under `name`.

    Raises:
        DuplicateNameError: the name belongs to another class already.
    """

    def store(cls: T) -> T:
        known = modules.get(name)
        if known is not None and known is not cls:
            raise DuplicateNameError(
                f"The name '{name}' is registered twice: by {_origin(known)} and by {_origin(cls)}. "
                "Names of extensions conflict; rename one, or disable one by ending its folder's name in '_disabled'."
            )
        modules[name] = cls
        return cls

    return store


def find(name: str) -> type:
    """The class registered under `name`.

    `"main:sub"` is a class with the bases (sub, main), `"main:s1,s2"` one with (s1, s2, main): the mixins come first
    in the method resolution order. The same string always gives the same class.

    Raises:
        RegistryError: unknown name; the message lists the nearest ones and every extension that failed to import.
    """
    main, colon, subs = str(name).partition(":")
    if not colon:
        return _lookup(name)
    parts = subs.split(",")
    if ":" in subs or not main or not all(parts):
        raise RegistryError(f"'{name}' is no composite name. The form is 'main:sub' or 'main:sub1,sub2'.")
    bases = (*(_lookup(part) for part in parts), _lookup(main))
    if bases not in _composites:
        _composites[bases] = type(f"{main}.{subs}", bases, {"__module__": "threestudio"})
    return _composites[bases]


def _lookup(name: str) -> type:
    if name in modules:
        return modules[name]
    message = f"'{name}' is not registered. {suggest(name, modules)}"
    for failure in extensions.failures():
        message += f"\nThe extension {failure.path} failed to import, so its names may be missing: {failure.cause}"
    raise RegistryError(message)


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
