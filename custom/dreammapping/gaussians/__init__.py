"""The Gaussian model, its learning rates, its densification and its files."""

from __future__ import annotations

from .densification import Densification
from .files import FILE_FORMATS, GaussianFileError, load_gaussians, save_gaussians
from .growth import NoGaussiansLeft
from .learning_rates import LearningRates, LogLinear
from .model import GaussianModel, knn_scales, rgb_to_sh0, sh0_to_rgb
from .optimizer import build_adam, optimizer_views, parameter_groups, update_learning_rates
from .settings import DensificationSettings

__all__ = [
    "FILE_FORMATS",
    "Densification",
    "DensificationSettings",
    "GaussianFileError",
    "GaussianModel",
    "LearningRates",
    "LogLinear",
    "NoGaussiansLeft",
    "build_adam",
    "knn_scales",
    "load_gaussians",
    "optimizer_views",
    "parameter_groups",
    "rgb_to_sh0",
    "save_gaussians",
    "sh0_to_rgb",
    "update_learning_rates",
]
