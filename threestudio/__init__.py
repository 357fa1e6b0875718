"""Our implementation of the extension API of threestudio 0.2.3: same names, current libraries, any device."""

from __future__ import annotations

import logging

from pytorch_lightning.utilities.rank_zero import rank_zero_debug, rank_zero_info, rank_zero_only

from threestudio.registry import find, modules as __modules__, register

__version__ = "0.2.3"

logger = logging.getLogger("pytorch_lightning")

debug = rank_zero_debug
info = rank_zero_info


@rank_zero_only
def warn(*args, **kwargs) -> None:
    """Log a warning, on the first process only."""
    logger.warning(*args, **kwargs)


# At the bottom: these register their classes with the functions above.
from threestudio import data, models, systems  # noqa: E402

__all__ = [
    "__modules__",
    "__version__",
    "data",
    "debug",
    "find",
    "info",
    "logger",
    "models",
    "rank_zero_debug",
    "rank_zero_info",
    "rank_zero_only",
    "register",
    "systems",
    "warn",
]
