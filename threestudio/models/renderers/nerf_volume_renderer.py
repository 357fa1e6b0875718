"""Renders a density field by integration along rays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from threestudio import register
from threestudio.errors import ConfigError, suggest
from threestudio.models.estimators import ImportanceEstimator, OccGridEstimator, PropNetEstimator, RaySamples
from threestudio.models.networks import create_network_with_input_encoding
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.models.renderers.rays import Rays, background_behind, composite, composite_normal
from threestudio.systems.utils import parse_optimizer, parse_scheduler_to_instance
from threestudio.utils.ops import chunk_batch, get_activation, scale_tensor, validate_empty_rays
from threestudio.utils.volume_rendering import render_weight_from_density

_CHOOSE_AT_ONCE = 2**22


@register("nerf-volume-renderer")
class NeRFVolumeRenderer(VolumeRenderer):
    """Volume rendering of a geometry with `forward_density`, a material and a background (NeRF, Mildenhall 2020).

    `forward` returns, for B views of H x W pixels, R = B H W rays and N samples:

    - `comp_rgb`, `comp_rgb_fg`, `comp_rgb_bg` [B, H, W, C]: the image, the object's part of it (premultiplied with
      opacity), the background alone;
    - `opacity`, `depth`, `z_variance` [B, H, W, 1]: the weights' sum, their sum times t (not divided by opacity), and
      the variance of t under the weights divided by their sum (zero where opacity is at most 0.5; HiFA, Zhu et al. 2023);
    - `comp_normal` [B, H, W, 3]: (n + 1) / 2 * opacity of the mean normal n, if the material requires normals; in
      training only with `return_comp_normal`;
    - in training, of the samples: `weights`, `t_points`, `t_intervals` [N, 1], `t_dirs`, `points` [N, 3], `ray_indices`
      [N] int64, everything the geometry gave, and with `return_normal_perturb` `normal_perturb` [N, 3], normals at
      points moved by a normal random vector with standard deviation 0.01.
    """

    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 512
        """occgrid: steps on the diagonal of the box; proposal, importance: (fine) intervals on each ray."""
        eval_chunk_size: int = 160000
        """Points evaluated at once in evaluation; 0 takes all."""
        train_chunk_size: int = 0
        """Points of which training keeps what the backward pass needs; with more, the field is evaluated again there,
        chunk by chunk. Same gradients, less memory, a field's forward pass more. 0 keeps all."""
        randomized: bool = True
        """Whether samples move at random in training."""
        near_plane: float = 0.0
        far_plane: float = 1e10
        """Limits of sampling, in units of the ray direction's length."""
        return_comp_normal: bool = False
        return_normal_perturb: bool = False
        estimator: str = "occgrid"
        """Where on a ray to sample: "occgrid", "proposal" or "importance"."""
        grid_prune: bool = True
        """occgrid: skip empty cells; False samples the whole box."""
        prune_alpha_threshold: bool = True
        """occgrid: drop samples that are nearly transparent or hidden."""
        proposal_network_config: Optional[dict] = None
        """proposal: `n_input_dims`, `n_output_dims`, `encoding_config`, `network_config` of its density network."""
        prop_optimizer_config: Optional[dict] = None
        """proposal: optimizer of that network, with `name` and `args`."""
        prop_scheduler_config: Optional[dict] = None
        num_samples_per_ray_proposal: int = 64
        num_samples_per_ray_importance: int = 64
        """Intervals of the coarse pass of these two estimators."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        if not callable(getattr(geometry, "forward_density", None)):
            raise ConfigError(
                f"nerf-volume-renderer needs a geometry with forward_density, such as implicit-volume; "
                f"{type(geometry).__name__} has none."
            )
        for key in ("num_samples_per_ray", "num_samples_per_ray_proposal", "num_samples_per_ray_importance"):
            if self.cfg[key] < 1:
                raise ConfigError(f"nerf-volume-renderer: {key} is {self.cfg[key]}; it must be at least 1.")
        build = {
            "occgrid": self._build_occgrid,
            "proposal": self._build_proposal,
            "importance": self._build_importance,
        }
        if self.cfg.estimator not in build:
            raise ConfigError(
                f"nerf-volume-renderer: there is no estimator '{self.cfg.estimator}'. "
                f"{suggest(self.cfg.estimator, build)}"
            )
        build[self.cfg.estimator]()

    def _build_occgrid(self) -> None:
        self.estimator = OccGridEstimator(self.bbox.view(-1), resolution=32)
        if not self.cfg.grid_prune:
            self.estimator.fill()
        self.render_step_size = 1.732 * 2 * self.cfg.radius / self.cfg.num_samples_per_ray

    def _build_importance(self) -> None:
        self.estimator = ImportanceEstimator()

    def _build_proposal(self) -> None:
        for key in ("proposal_network_config", "prop_optimizer_config"):
            if self.cfg[key] is None:
                raise ConfigError(f"nerf-volume-renderer: estimator 'proposal' needs {key}; it is not set.")
        try:
            self.prop_net = create_network_with_input_encoding(**self.cfg.proposal_network_config)
        except TypeError as error:
            raise ConfigError(f"nerf-volume-renderer: proposal_network_config does not fit: {error}") from error
        optimizer = parse_optimizer(self.cfg.prop_optimizer_config, self.prop_net)
        scheduler = self.cfg.prop_scheduler_config
        self.estimator = PropNetEstimator(
            optimizer, None if scheduler is None else parse_scheduler_to_instance(scheduler, optimizer)
        )
        self._proposals_learn, self._step = False, 0

    @property
    def randomized(self) -> bool:
        """Whether samples move at random now."""
        return self.training and self.cfg.randomized

    # ---- where to sample ----

    def _density(self, points: Tensor) -> Tensor:
        """Densities [...] at world points [..., 3]."""
        flat = points.reshape(-1, 3)
        size = self.cfg.eval_chunk_size
        if self.training:
            # Without gradients, as where samples are chosen, chunks are free on a GPU once they fill it.
            size = _CHOOSE_AT_ONCE if flat.is_cuda and not torch.is_grad_enabled() else 0
        return chunk_batch(self.geometry.forward_density, size, flat).reshape(points.shape[:-1])

    def _proposal_density(self, points: Tensor) -> Tensor:
        """Densities [...] of the proposal network; none outside the box."""
        unit = scale_tensor(points, self.bbox, (0, 1))
        inside = ((unit > 0) & (unit < 1)).all(dim=-1)
        values = self.prop_net(unit.reshape(-1, 3)).reshape(points.shape[:-1])
        return get_activation("shifted_trunc_exp")(values) * inside

    def _sample(self, rays: Rays) -> RaySamples:
        if self.cfg.estimator == "occgrid":
            return self._sample_occgrid(rays)
        if self.cfg.estimator == "proposal":
            density, count = self._proposal_density, self.cfg.num_samples_per_ray_proposal
            learn = self.training and self._proposals_learn
        else:
            density, count, learn = self._density, self.cfg.num_samples_per_ray_importance, False
        return self._sample_resampled(rays, density, count, learn)

    def _sample_occgrid(self, rays: Rays) -> RaySamples:
        def sigma_fn(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
            return self._density(rays.points(ray_indices, (t_starts + t_ends) / 2))

        prune = self.cfg.grid_prune and self.cfg.prune_alpha_threshold
        return self.estimator.sampling(
            rays.origins,
            rays.directions,
            sigma_fn=sigma_fn if prune else None,
            near_plane=self.cfg.near_plane,
            far_plane=self.cfg.far_plane,
            render_step_size=self.render_step_size,
            alpha_thre=0.01 if prune else 0.0,
            stratified=self.randomized,
        )

    def _sample_resampled(
        self, rays: Rays, density: Callable[[Tensor], Tensor], coarse_count: int, learn: bool
    ) -> RaySamples:
        def density_fn(t_starts: Tensor, t_ends: Tensor) -> Tensor:
            t = ((t_starts + t_ends) / 2)[..., None]
            return density(rays.origins[:, None] + rays.directions[:, None] * t)

        # As with the grid, matter outside the box is not looked for.
        box = None if getattr(self.geometry, "unbounded", False) else self.bbox
        near, far = rays.span(self.cfg.near_plane, self.cfg.far_plane, box)
        t_starts, t_ends = self.estimator.sampling(
            prop_sigma_fns=[density_fn],
            prop_samples=[coarse_count],
            num_samples=self.cfg.num_samples_per_ray,
            n_rays=len(near),
            near_plane=near,
            far_plane=far,
            sampling_type="uniform",
            stratified=self.randomized,
            requires_grad=learn,
        )
        ray_indices = torch.arange(len(near), device=near.device).repeat_interleave(t_starts.shape[1])
        return RaySamples(ray_indices, t_starts.flatten(), t_ends.flatten())

    # ---- color ----

    def _field(self, points: Tensor) -> dict[str, Tensor]:
        """What the geometry says of points [N, 3]."""
        field = partial(self.geometry, output_normal=self.material.requires_normal)
        if not self.training or not 0 < self.cfg.train_chunk_size < len(points):
            return field(points)
        return chunk_batch(partial(checkpoint, field, use_reentrant=False), self.cfg.train_chunk_size, points)

    def _shade(self, rays: Rays, ray_indices: Tensor, t_points: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Colors [N, C] of samples, and what the geometry says of them."""
        points = rays.points(ray_indices, t_points)
        found = self._field(points)
        rgb = self.material(
            viewdirs=rays.directions_of(ray_indices),
            positions=points,
            light_positions=rays.light_of(ray_indices),
            **found,
            **kwargs,
        )
        return rgb, {"points": points, **found}

    def _shade_for_image(self, rays: Rays, ray_indices: Tensor, t_points: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As `_shade`, without what an image does not need: all samples of a large view must fit into memory."""
        rgb, found = self._shade(rays, ray_indices, t_points)
        return rgb, {key: found[key] for key in ("density", "normal") if key in found}

    def forward(
        self, rays_o: Tensor, rays_d: Tensor, light_positions: Tensor, bg_color: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Render views; see the class for what comes back.

        Args:
            rays_o, rays_d: [B, H, W, 3] world space; directions may have any length, distances count in it.
            light_positions: [B, 3].
            bg_color: [B, C] or [B, H, W, C] in place of the background.
            kwargs: passed to the material in training, such as `ambient_ratio` and `shading`.
        """
        shape = rays_o.shape[:-1]
        rays = Rays(rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), light_positions)
        ray_indices, t_starts, t_ends = validate_empty_rays(*self._sample(rays))
        t_points = (t_starts + t_ends) / 2
        if self.training:
            rgb, found = self._shade(rays, ray_indices, t_points, **kwargs)
        else:
            shade = partial(self._shade_for_image, rays)
            rgb, found = chunk_batch(shade, self.cfg.eval_chunk_size, ray_indices, t_points)

        density, n_rays = found["density"][..., 0], len(rays.origins)
        weights = render_weight_from_density(t_starts, t_ends, density, ray_indices, n_rays).weights
        images = composite(weights, t_points, rgb, ray_indices, n_rays)
        opacity = images["opacity"]
        learned_bg = self.background(dirs=rays_d)
        behind = background_behind(learned_bg, bg_color).reshape(len(opacity), -1)
        images.update(comp_rgb=images["comp_rgb_fg"] + behind * (1.0 - opacity), comp_rgb_bg=learned_bg)
        if "normal" in found and (self.cfg.return_comp_normal or not self.training):
            images["comp_normal"] = composite_normal(weights, found["normal"], ray_indices, opacity)
        out: dict[str, Any] = {key: value.reshape(*shape, -1) for key, value in images.items()}
        if self.training:
            out.update(self._sample_outputs(rays, ray_indices, t_starts, t_ends, weights, found))
            self._hand_in(weights)
        return out

    def _sample_outputs(
        self, rays: Rays, ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor, weights: Tensor, found: dict[str, Any]
    ) -> dict[str, Any]:
        out = {
            "weights": weights[:, None],
            "t_points": ((t_starts + t_ends) / 2)[:, None],
            "t_intervals": (t_ends - t_starts)[:, None],
            "t_dirs": rays.directions_of(ray_indices),
            "ray_indices": ray_indices,
            **found,
        }
        if "normal" in found and self.cfg.return_normal_perturb:
            points = found["points"]
            # Drawn on the CPU, so that a seed gives the same on every device.
            moved = points + torch.randn(points.shape).to(points) * 1e-2
            out["normal_perturb"] = self.geometry(moved, output_normal=True)["normal"]
        return out

    # ---- hooks ----

    def _hand_in(self, weights: Tensor) -> None:
        if self.cfg.estimator == "proposal":
            self.estimator.remember(weights.view(-1, self.cfg.num_samples_per_ray))

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.cfg.estimator == "proposal":
            self._step = global_step
            self._proposals_learn = self.training and self.estimator.wants_gradient(global_step)
        if self.cfg.estimator != "occgrid":
            return
        if not self.cfg.grid_prune:
            self.estimator.fill()  # again, as the state of a run that did prune may have been loaded
        elif self.training and not on_load_weights:
            # density * step is the first order of the opacity 1 - exp(-density * step) of a step.
            self.estimator.update_every_n_steps(
                global_step, lambda points: self.geometry.forward_density(points) * self.render_step_size
            )

    def update_step_end(self, epoch: int, global_step: int) -> None:
        if self.cfg.estimator == "proposal" and self.training:
            self.estimator.update_every_n_steps(self._step, self._proposals_learn)
