"""The part of nerfacc 0.5's interface that threestudio's NeRF renderer calls, in plain PyTorch, for tests on a CPU.

Rays are flat lists of samples: `ray_indices` [M] sorted, `t_starts` and `t_ends` [M]. Submodules that threestudio only
imports have no contents (absent.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__path__: list[str] = []  # makes this module a package, whose submodules absent.py provides


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, *, ray_indices: Tensor, n_rays: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, transmittance before each sample, alphas), [M] each."""
    depth = sigmas * (t_ends - t_starts)
    # In float64, because a ray's share is the difference of two sums over all rays.
    before = depth.double().cumsum(dim=0) - depth.double()
    first = torch.searchsorted(ray_indices.contiguous(), torch.arange(n_rays)).clamp(max=max(len(depth) - 1, 0))
    transmittance = torch.exp(before[first[ray_indices]] - before).to(sigmas.dtype)
    alphas = 1 - torch.exp(-depth)
    return transmittance * alphas, transmittance, alphas


def accumulate_along_rays(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Sum of weights * values for each ray: [n_rays, D]; of the weights alone, [n_rays, 1], without values."""
    shares = weights[:, None] if values is None else weights[:, None] * values
    return shares.new_zeros(n_rays, shares.shape[1]).index_add(0, ray_indices, shares)


class OccGridEstimator(nn.Module):
    """Fixed steps through a box, except where a grid says that nothing is; one level only."""

    def __init__(self, roi_aabb: Tensor, resolution: int, levels: int = 1) -> None:
        super().__init__()
        if levels != 1:
            raise NotImplementedError("the tests' stand-in for nerfacc has one level")
        self.resolution = resolution
        self.register_buffer("aabbs", torch.as_tensor(roi_aabb, dtype=torch.float32).reshape(1, 6))
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.zeros(1, resolution, resolution, resolution, dtype=torch.bool))

    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: Callable | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
        cone_angle: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(ray_indices, t_starts, t_ends) of the samples that are kept."""
        if cone_angle != 0.0:
            raise NotImplementedError("the tests' stand-in for nerfacc steps evenly")
        enter, leave = self._box(rays_o, rays_d, near_plane, far_plane)
        count = max(math.ceil(float((leave - enter).clamp(min=0).max()) / render_step_size), 1)
        shift = torch.rand(len(rays_o), 1) if stratified else torch.zeros(len(rays_o), 1)
        starts = enter[:, None] + (torch.arange(count) + shift) * render_step_size
        ends = torch.minimum(starts + render_step_size, leave[:, None])
        middles = rays_o[:, None] + (starts + ends)[..., None] / 2 * rays_d[:, None]
        kept = (ends > starts) & self._occupied(middles)
        rays, t_starts, t_ends = kept.nonzero()[:, 0], starts[kept], ends[kept]
        if sigma_fn is not None and len(rays):
            sigmas = sigma_fn(t_starts, t_ends, rays)
            _, seen, alphas = render_weight_from_density(t_starts, t_ends, sigmas, ray_indices=rays, n_rays=len(rays_o))
            visible = (seen >= early_stop_eps) & (alphas >= alpha_thre)
            rays, t_starts, t_ends = rays[visible], t_starts[visible], t_ends[visible]
        return rays, t_starts, t_ends

    @torch.no_grad()
    def update_every_n_steps(
        self, step: int, occ_eval_fn: Callable, occ_thre: float = 1e-2, ema_decay: float = 0.95, n: int = 16
    ) -> None:
        """Ask for the occupancy in every cell, at a random place within it."""
        if not self.training or step % n:
            return
        axis = torch.arange(self.resolution)
        cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        low, high = self.aabbs[0, :3], self.aabbs[0, 3:]
        places = low + (cells + torch.rand(len(cells), 3)) / self.resolution * (high - low)
        self.occs.copy_(torch.maximum(self.occs * ema_decay, occ_eval_fn(places).reshape(-1)))
        self.binaries.copy_((self.occs > self.occs.mean().clamp(max=occ_thre)).reshape(self.binaries.shape))

    def _box(self, rays_o: Tensor, rays_d: Tensor, near: float, far: float) -> tuple[Tensor, Tensor]:
        """Where each ray enters and leaves the box, [N] each; equal where it misses."""
        inverse = 1 / torch.where(rays_d.abs() < 1e-12, torch.full_like(rays_d, 1e-12), rays_d)
        a, b = (self.aabbs[0, :3] - rays_o) * inverse, (self.aabbs[0, 3:] - rays_o) * inverse
        enter = torch.minimum(a, b).amax(dim=-1).clamp(min=near)
        return enter, torch.maximum(torch.maximum(a, b).amin(dim=-1).clamp(max=far), enter)

    def _occupied(self, places: Tensor) -> Tensor:
        low, high = self.aabbs[0, :3], self.aabbs[0, 3:]
        cell = ((places - low) / (high - low) * self.resolution).long().clamp(0, self.resolution - 1)
        return self.binaries[0][cell.unbind(dim=-1)]
