"""Errors meant for the person at the keyboard: what is wrong, where, what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class DreamMappingError(ValueError):
    """A mistake in the input or the environment; `is_user_error` tells launchers to print the message alone."""

    is_user_error = True


class ConfigError(DreamMappingError):
    """A config key, value or name that does not exist or does not fit."""


class TeacherError(DreamMappingError):
    """A diffusion model that cannot be used: a part is missing, damaged or of an unsupported kind."""


@contextmanager
def mistakes_end_the_program() -> Iterator[None]:
    """For command lines: a user's mistake ends the process with its message and exit code 1, any other error with its traceback."""
    try:
        yield
    except Exception as problem:
        if not getattr(problem, "is_user_error", False):
            raise
        sys.exit(f"Error: {problem}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Ends a message about an unknown name: the nearest known ones, or all of them if none is near."""
    known = sorted(known)
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + (", ".join(known) if known else "none")
