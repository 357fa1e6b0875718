"""Gaussians as a threestudio geometry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import threestudio
import torch
from threestudio.models.geometry.base import BaseGeometry
from torch import Tensor

from ..errors import ConfigError
from ..gaussians import (
    Densification,
    DensificationSettings,
    GaussianModel,
    LearningRates,
    load_gaussians,
    parameter_groups,
    save_gaussians,
    update_learning_rates,
)
from ..initialization import ColoredPoints, InitSettings, initial_gaussians, initial_points
from ..initialization.mesh import points_on_triangles
from ..random_streams import stream_generator, stream_seed
from ..settings import parse_settings, to_plain

WHERE = "system.geometry"
_RATES = LearningRates()


@threestudio.register("dreammapping-gaussians")
class GaussianGeometry(BaseGeometry):
    """The Gaussians of a run, how fast they learn and how their number changes.

    The renderer reads `gaussians`; the system takes `optimizer_groups()` into its one Adam and calls, in each step,
    `update_learning_rates`, `before_backward` and `after_optimizer_step`. Everything that a run needs to go on (parameters,
    statistics, random numbers) is in the state dict, which loads whatever the number of Gaussians in it.
    """

    @dataclass
    class Config(BaseGeometry.Config):
        sh_degree: int = 0
        """Degree of the spherical harmonics of color, 0 (one color) to 4. LucidDreamer: 0."""
        sh_degree_interval: int = 0
        """Render degree 0 first and one degree more after every so many steps; 0: all from the start."""
        opacity_init: float = 0.1
        """Opacity of every Gaussian at the start, between 0 and 1. 3D Gaussian Splatting: 0.1."""
        init: dict = field(default_factory=dict)
        """Where the first points come from: see InitSettings."""
        load_splat: Optional[str] = None
        """Start from all Gaussians of this splat PLY (as the exporter writes it), instead of `init`."""
        densification: dict = field(default_factory=dict)
        """How the number of Gaussians changes: see DensificationSettings."""
        # Numbers or threestudio's schedules, interpolated in the logarithm: see LearningRates.
        position_lr: Any = field(default_factory=lambda: list(_RATES.position))
        feature_lr: Any = field(default_factory=lambda: list(_RATES.feature))
        feature_rest_lr: Any = None
        opacity_lr: Any = _RATES.opacity
        scaling_lr: Any = field(default_factory=lambda: list(_RATES.scaling))
        rotation_lr: Any = field(default_factory=lambda: list(_RATES.rotation))

    cfg: Config

    def configure(self, start: GaussianModel | ColoredPoints | None = None) -> None:
        """`start` replaces what the config says about the initialization."""
        super().configure()
        settings = parse_settings(DensificationSettings, self.cfg.densification, f"{WHERE}.densification")
        names = ("position", "feature", "feature_rest", "opacity", "scaling", "rotation")
        rates = LearningRates(**{name: to_plain(self.cfg[f"{name}_lr"]) for name in names})
        self._schedules = rates.schedules(WHERE)
        if self.cfg.sh_degree_interval < 0:
            raise ConfigError(f"{WHERE}.sh_degree_interval is {self.cfg.sh_degree_interval}; it must be at least 0")
        self.gaussians = self._first_gaussians(start, settings.cap_max)
        if self.count > settings.cap_max:
            raise ConfigError(
                f"{WHERE} starts with {self.count} Gaussians, above densification.cap_max ({settings.cap_max}); raise the cap"
            )
        if self.cfg.sh_degree_interval > 0:
            self.gaussians.active_sh_degree = 0
        self.densification = Densification(settings, self.count, seed=stream_seed("densification"))

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any = None, **kwargs: Any) -> GaussianGeometry:
        """Copy other Gaussians, or spread `init.num_points` Gaussians over the surface of a geometry that has one."""
        if isinstance(other, GaussianGeometry):
            return GaussianGeometry(cfg, start=other.gaussians)
        if not hasattr(other, "isosurface"):
            return BaseGeometry.create_from(other, cfg, **kwargs)
        mesh = other.isosurface()
        plain = to_plain(cfg) or {}
        settings = parse_settings(InitSettings, plain.get("init"), f"{WHERE}.init")
        if settings.num_points is None:
            raise ConfigError(f"{WHERE}.init.num_points must be given to spread Gaussians over a surface")
        cloud = points_on_triangles(
            mesh.v_pos.detach().cpu(), mesh.t_pos_idx.cpu(), settings.num_points, stream_generator("initialization"), settings.color
        )
        return GaussianGeometry(cfg, start=cloud)

    # ------------------------------------------------------------------ for the system

    @property
    def count(self) -> int:
        """Number of Gaussians."""
        return self.gaussians.count

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """One named group for each parameter tensor, for one torch Adam (`build_adam`)."""
        return parameter_groups(self.gaussians, self._schedules)

    def update_learning_rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rates of this geometry's groups to those of `step`."""
        update_learning_rates(optimizer, self._schedules, step)

    def before_backward(self, step: int, info: Mapping[str, Any]) -> None:
        """To be called between rendering and backward; `info` is the rasterizer's."""
        self.densification.before_backward(step, info)

    def after_optimizer_step(self, step: int, info: Mapping[str, Any], optimizer: Any) -> bool:
        """To be called after the optimizer's step `step` (from 0). True: the number of Gaussians may have changed."""
        return self.densification.after_step(step, info, self.gaussians, optimizer)

    def prepare_for_state_dict(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Take the number of Gaussians from a state dict that is about to be loaded, whose keys here start with `prefix`."""
        self.gaussians.prepare_for_state_dict(state, f"{prefix}gaussians.")
        self.densification.prepare_for_state_dict(state, f"{prefix}densification.")

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        interval = self.cfg.sh_degree_interval
        if interval > 0:
            # Never back: a run that only tests starts at step 0 with the degree of its checkpoint.
            due = min(self.gaussians.sh_degree, global_step // interval)
            self.gaussians.active_sh_degree = max(self.gaussians.active_sh_degree, due)

    # ------------------------------------------------------------------ for people and exporters

    def bounding_radius(self) -> float:
        """Largest distance of a Gaussian's center from the origin, world units.

        (A method: threestudio evaluates every property of a geometry in each step, and this one waits for the device.)
        """
        return self.gaussians.bounding_radius()

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Copies on the CPU of the activated values: means, scales, quats, opacities, sh."""
        model = self.gaussians
        with torch.no_grad():
            values = {
                "means": model.get_means,
                "scales": model.get_scales,
                "quats": model.get_quats,
                "opacities": model.get_opacities,
                "sh": model.get_sh,
            }
            return {name: value.detach().cpu().clone() for name, value in values.items()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a splat file, its format by the suffix (.ply, .compressed.ply, .splat)."""
        return save_gaussians(self.gaussians, path)

    # ------------------------------------------------------------------ inside

    def _first_gaussians(self, start: GaussianModel | ColoredPoints | None, cap: int) -> GaussianModel:
        degree = self.cfg.sh_degree
        if isinstance(start, GaussianModel):
            return start.with_sh_degree(degree)
        if start is None and self.cfg.load_splat:
            return load_gaussians(self.cfg.load_splat, degree)
        if start is None:
            settings = parse_settings(InitSettings, self.cfg.init, f"{WHERE}.init")
            if settings.type == "splat":
                return _in_degree(initial_gaussians(settings), degree)
            start = initial_points(settings, stream_generator("initialization"), cap, self.device)
        return GaussianModel.from_points(start, sh_degree=degree, opacity=self.cfg.opacity_init)


def _in_degree(model: GaussianModel, degree: int) -> GaussianModel:
    if model.sh_degree > degree:
        threestudio.info(
            f"The splat file's colors depend on the view (SH degree {model.sh_degree}); {WHERE}.sh_degree is {degree}, "
            "so what is above is left out"
        )
    return model.with_sh_degree(degree)
