"""Names to classes, for the things a config chooses by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from .errors import ConfigError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named classes or functions of one kind.

    >>> LOSSES = Registry("loss")
    >>> @LOSSES.register("sds")
    ... class SDS: ...
    >>> LOSSES.get("sds").__name__
    'SDS'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its object under `name`. A second object under one name is a programming mistake."""

        def decorate(entry: T) -> T:
            known = self._entries.get(name)
            # A module imported twice (a reload) brings the same class again; another class is a clash.
            if known is not None and _identity(known) != _identity(entry):
                raise ConfigError(
                    f"{self.kind} {name!r} is registered twice: {_identity(known)} and {_identity(entry)}"
                )
            self._entries[name] = entry
            return entry

        return decorate

    def get(self, name: str) -> T:
        """The object called `name`. Raises ConfigError with the nearest known names."""
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}; {suggest(name, self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def _identity(entry: object) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
