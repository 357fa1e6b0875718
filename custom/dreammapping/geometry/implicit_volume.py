"""threestudio's radiance field with a first shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import threestudio
import torch
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.geometry.implicit_volume import ImplicitVolume

from ..errors import ConfigError
from ..initialization import INITIALIZATIONS, InitSettings
from ..initialization.settings import FILE_TYPES, require_path
from ..initialization.shapes import initial_shape
from ..random_streams import stream_generator
from ..settings import parse_settings, to_plain
from .field_fit import FitSettings, fit_field

WHERE = "system.geometry"
_DENSITY = 50.0
"""Deep inside, where isosurface_threshold is "auto" or not above 0; twice threestudio's own threshold."""

_POOR = 0.5
"""Overlaps below are warned of."""


@threestudio.register("dreammapping-implicit-volume")
class InitializedVolume(ImplicitVolume):
    """`implicit-volume`, fitted before its first step to the shape that `init` describes.

    Without `init.type` it is `implicit-volume`. With it, density and color are fitted at the first update of a fresh run: not
    after weights were loaded (a resumed run, a test of a checkpoint, `system.weights`, a conversion). Checkpoints are
    those of `implicit-volume`.
    """

    @dataclass
    class Config(ImplicitVolume.Config):
        init: dict = field(default_factory=dict)
        """The first shape: see InitSettings. Without `type` there is none, the blob of `density_bias` stays."""
        fit: dict = field(default_factory=dict)
        """How the field is fitted to it: see FitSettings."""

    cfg: Config

    def configure(self) -> None:
        super().configure()
        plain = to_plain(self.cfg.init) or {}
        self._fit = parse_settings(FitSettings, self.cfg.fit, f"{WHERE}.fit")
        settings = parse_settings(InitSettings, plain, f"{WHERE}.init")
        self._init = settings if "type" in plain else None
        if self._init is None and (settings.path or settings.prompt):
            raise ConfigError(f"{WHERE}.init has a path or a prompt but no type; set {WHERE}.init.type to mesh, points, splat or shap-e")
        if self._init is not None:
            INITIALIZATIONS.get(self._init.type)  # an unknown name is told now, not at the first step
            if self._init.type in FILE_TYPES:
                require_path(self._init)
        self._due = self._init is not None

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        super().update_step(epoch, global_step, on_load_weights)
        # Weights may still be on their way when `on_load_weights` is set; and they are what is wanted then.
        if self._due and not on_load_weights:
            self._due = False
            if global_step == 0:
                self._fit_to_init()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            self._due = False
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any = None, copy_net: bool = True, **kwargs: Any) -> InitializedVolume:
        """As `implicit-volume`'s; the other geometry is the first shape, `init` is not used."""
        volume = InitializedVolume(cfg, **kwargs)
        shared = {key: value for key, value in (to_plain(cfg) or {}).items() if key not in ("init", "fit")}
        copied = ImplicitVolume.create_from(other, shared, copy_net=copy_net, **kwargs)
        volume.load_state_dict(copied.state_dict())
        return volume

    def _fit_to_init(self) -> None:
        device = next(self.parameters()).device
        generator = stream_generator("initialization")
        threestudio.info(f"Fitting the field to its first shape ({self._init.type})")
        shape = initial_shape(self._init, generator, device)
        threshold = self.cfg.isosurface_threshold
        twice = 0.0 if threshold == "auto" else 2 * float(threshold)
        density = self._fit.density or (twice if twice > 0 else _DENSITY)
        fit_colors = self.cfg.n_feature_dims == 3
        if not fit_colors:
            threestudio.info(f"Colors are not fitted: the field has {self.cfg.n_feature_dims} features, and 3 are read as a color")
        result = fit_field(
            self, shape, self._fit, radius=self.cfg.radius, density=density, fit_colors=fit_colors, generator=generator,
            report=threestudio.info,
        )  # fmt: skip
        _agree(self)
        threestudio.info(f"The field overlaps its first shape by {result.overlap:.1%}; its colors are off by {result.color_error:.3f}")
        if result.overlap < _POOR:
            threestudio.warn(
                f"That is little: the run starts from something else than asked for. Raise {WHERE}.fit.steps ({self._fit.steps}), or "
                f"{WHERE}.fit.width ({self._fit.width}) if the shape is thinner than that"
            )


def _agree(module: torch.nn.Module) -> None:
    """Give every process of a distributed run the first one's values: their random numbers differ."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for parameter in module.parameters():
            torch.distributed.broadcast(parameter.data, src=0)
