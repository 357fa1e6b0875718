"""A grid that remembers where matter is, so that rays need not be sampled elsewhere (instant-ngp, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from threestudio.models.estimators.marching import RaySamples, march
from threestudio.utils.volume_rendering import render_visibility_from_density

SigmaFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""t_starts [N], t_ends [N], ray_indices [N] -> densities [N]."""


class OccGridEstimator(nn.Module):
    """Occupancy of a box on a grid of cells, updated from the field itself during training.

    Each cell keeps a running maximum of the opacity found at random points in it, which decays from update to update; a
    cell is occupied when it lies above a threshold. The buffers are meant to have the names and shapes of
    nerfacc's class of the same name with one level, so that checkpoints fit both; none of nerfacc's was loaded yet.

    Args:
        roi_aabb: [6], the box: lower, then upper corner.
        resolution: cells along each axis.
    """

    def __init__(self, roi_aabb: Tensor, resolution: int = 32) -> None:
        super().__init__()
        shape = (resolution,) * 3
        self.resolution: Tensor
        self.aabbs: Tensor
        self.occs: Tensor
        self.binaries: Tensor
        self.register_buffer("resolution", torch.tensor(shape, dtype=torch.int32))
        self.register_buffer("aabbs", roi_aabb.detach().clone().reshape(1, 6))
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.zeros(1, *shape, dtype=torch.bool))

    def fill(self) -> None:
        """Declare all of the box occupied."""
        self.occs.fill_(1.0)
        self.binaries.fill_(True)

    # ---- sampling ----

    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: SigmaFn | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
    ) -> RaySamples:
        """Intervals of length `render_step_size` in occupied cells. Not differentiable.

        Args:
            rays_o, rays_d: [R, 3].
            sigma_fn: densities of intervals; with it, intervals that stop less than `alpha_thre` of the light, or to
                which less than `early_stop_eps` of it comes, are dropped.
            near_plane, far_plane: limits in units of the directions' length.
            alpha_thre: at most the mean occupancy is used, lest a thin young field vanish altogether.
            stratified: shift each ray's intervals by a random part of one, drawn on the CPU from torch's global
                generator, so that a seed gives the same samples on every device.
        """
        near = torch.full_like(rays_o[:, 0], near_plane)
        if stratified:
            near = near + torch.rand(len(near)).to(near) * render_step_size
        far = torch.full_like(near, far_plane)
        box = self.aabbs[0].view(2, 3)
        samples = march(rays_o, rays_d, self.binaries[0], box, render_step_size, near, far)
        if sigma_fn is None or samples.t_starts.numel() == 0:
            return samples
        ray_indices, t_starts, t_ends = samples
        sigmas = sigma_fn(t_starts, t_ends, ray_indices)
        limit = self.occs.mean().clamp(max=alpha_thre)  # stays a tensor: reading it would make the host wait for a GPU
        return samples.keep(
            render_visibility_from_density(t_starts, t_ends, sigmas, ray_indices, early_stop_eps, limit, len(rays_o))
        )

    # ---- updating ----

    @torch.no_grad()
    def update_every_n_steps(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """At every n-th step, look at the field anew.

        Args:
            occ_eval_fn: points [N, 3] -> opacity of a step there [N, 1] or [N].
            occ_thre: cells above it, or above the mean if that is lower, are occupied.
            ema_decay: factor on a cell's old value before the new one is compared with it.
            warmup_steps: before this step all cells are looked at, later a quarter at random and as many occupied ones.
        """
        if step % n != 0:
            return
        cells = self._all_cells() if step < warmup_steps else self._some_cells(len(self.occs) // 4)
        occupancy = occ_eval_fn(self._points_in(cells)).reshape(-1).to(self.occs)
        self.occs[cells] = self.occs[cells] * ema_decay
        self.occs.scatter_reduce_(0, cells, occupancy, "amax")  # a cell may be drawn twice
        threshold = self.occs.mean().clamp(max=occ_thre)
        self.binaries.copy_((self.occs > threshold).view(self.binaries.shape))

    def _all_cells(self) -> Tensor:
        return torch.arange(len(self.occs), device=self.occs.device)

    def _some_cells(self, count: int) -> Tensor:
        """`count` random cells, then at most `count` random occupied ones."""
        occupied = self.binaries.flatten().nonzero()[:, 0]
        if len(occupied) > count:
            occupied = occupied[torch.randint(len(occupied), (count,)).to(occupied)]
        return torch.cat([torch.randint(len(self.occs), (count,)).to(occupied), occupied])

    def _points_in(self, cells: Tensor) -> Tensor:
        """A random point [N, 3] in each of the cells [N]."""
        n_y, n_z = self.binaries.shape[2:]
        corners = torch.stack([cells // (n_y * n_z), cells // n_z % n_y, cells % n_z], dim=-1)
        unit = (corners + torch.rand(len(cells), 3).to(self.aabbs)) / self.resolution
        low, high = self.aabbs[0].view(2, 3)
        return low + unit * (high - low)
