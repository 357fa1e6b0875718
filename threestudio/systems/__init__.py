"""Systems: the Lightning modules that train and evaluate."""

from __future__ import annotations

from threestudio.systems import base, optimizers, utils

__all__ = ["base", "optimizers", "utils"]
