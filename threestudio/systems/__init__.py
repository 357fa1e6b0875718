"""Systems: the Lightning modules that train and evaluate."""

from __future__ import annotations

from threestudio.systems import base, dreamfusion, optimizers, prolificdreamer, utils

__all__ = ["base", "dreamfusion", "optimizers", "prolificdreamer", "utils"]
