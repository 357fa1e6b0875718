"""Score distillation: pure torch, no images, cameras, files or frameworks.

One file per loss; importing it here registers it.
"""

from __future__ import annotations

# Registers the losses, one line each.
from . import asynchronous  # noqa: F401
from . import asd  # noqa: F401
from . import dreamflow  # noqa: F401
from . import lods  # noqa: F401
from . import bridge_sds  # noqa: F401
from . import csd  # noqa: F401
from . import nfsd  # noqa: F401
from . import lmc_sds  # noqa: F401
from . import consistent3d  # noqa: F401
from . import ism  # noqa: F401
from . import sctd  # noqa: F401
from . import sdi  # noqa: F401
from . import sds  # noqa: F401
from . import ssd  # noqa: F401
from . import vdm  # noqa: F401
from . import vsd  # noqa: F401

# And where VDM's coefficient comes from.
from . import dca_learned  # noqa: F401
from . import dca_measured  # noqa: F401
from .auxiliary import AuxiliaryOptimizer, AuxiliaryUpdate
from .cfg import CFGConvention, Guided, guide, perpendicular, seed_scale
from .dca import COEFFICIENTS, Coefficient, CutOff, build_coefficient
from .distiller import Distillation, Distiller, DistillerSettings, inject
from .draw import NoisyDraw, draw_noise
from .loss import LOSSES, LossContext, ScoreLoss, ScoreResult, build_loss, register_loss
from .noise_schedule import NoiseSchedule
from .schedule import Schedule, scheduled
from .teacher import CallCount, Cost, NoisePredictor, PromptedTeacher
from .timesteps import TIMESTEPS, Timesteps, build_timesteps
from .trainable import Adaptable, AdapterOptions, TrainablePredictor
from .weighting import WEIGHTINGS

__all__ = [
    "Adaptable",
    "AdapterOptions",
    "AuxiliaryOptimizer",
    "AuxiliaryUpdate",
    "CFGConvention",
    "COEFFICIENTS",
    "CallCount",
    "Coefficient",
    "Cost",
    "CutOff",
    "Distillation",
    "Distiller",
    "DistillerSettings",
    "Guided",
    "LOSSES",
    "LossContext",
    "NoisePredictor",
    "NoiseSchedule",
    "NoisyDraw",
    "PromptedTeacher",
    "Schedule",
    "ScoreLoss",
    "ScoreResult",
    "TIMESTEPS",
    "Timesteps",
    "TrainablePredictor",
    "WEIGHTINGS",
    "build_coefficient",
    "build_loss",
    "build_timesteps",
    "draw_noise",
    "guide",
    "inject",
    "perpendicular",
    "register_loss",
    "scheduled",
    "seed_scale",
]
