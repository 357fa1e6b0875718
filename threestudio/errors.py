"""Errors a user can act on: the launcher prints their message alone, without a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what, where and what next."""

    is_user_error = True


class ConfigError(UserError, ValueError):
    """A configuration file or an override is wrong."""


class RegistryError(UserError, KeyError):
    """A name is not registered, or cannot be."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would print the quoted representation of the message


class DuplicateNameError(RegistryError, ValueError):
    """Two classes ask for the same registered name."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or written."""


class WriteError(UserError, OSError):
    """A file cannot be written."""

    @classmethod
    def of(cls, path: str, error: OSError) -> WriteError:
        """What to tell the user of the operating system's `error`."""
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            return cls(
                f"The disk is full while {path} was written. Free some space, then resume the run from its last "
                "checkpoint."
            )
        return cls(
            f"{path} cannot be written: {error.strerror or error}. Look at the folder's permissions and at the disk, "
            "then resume the run from its last checkpoint."
        )


class PretrainedError(UserError, OSError):
    """Pretrained weights cannot be found or are damaged."""


class ExtensionError(UserError, ImportError):
    """An extension in custom/ could not be imported."""


def suggest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """One sentence naming the known names nearest to `name`, or all of them when none is near.

    The comparison ignores case and treats `-` and `_` alike. Empty when nothing is known.
    """
    names = sorted({str(entry) for entry in known})
    if not names:
        return ""
    plain = {_plain(entry): entry for entry in names}
    close = difflib.get_close_matches(_plain(name), plain, n=count, cutoff=0.55)
    if close:
        return f"Did you mean {_join([plain[entry] for entry in close])}?"
    if len(names) <= 20:
        return f"Known: {', '.join(names)}."
    return f"Known are {len(names)} names, among them {', '.join(names[:8])}."


def _plain(name: str) -> str:
    return str(name).lower().replace("_", "-")


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
