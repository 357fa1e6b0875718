"""Estimators: which parts of a ray are worth evaluating the field at."""

from threestudio.models.estimators.importance import ImportanceEstimator
from threestudio.models.estimators.marching import RaySamples
from threestudio.models.estimators.occupancy_grid import OccGridEstimator
from threestudio.models.estimators.proposal import PropNetEstimator

__all__ = ["ImportanceEstimator", "OccGridEstimator", "PropNetEstimator", "RaySamples"]
