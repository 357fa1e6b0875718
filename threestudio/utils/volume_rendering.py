"""Emission and absorption along rays, in plain PyTorch on any device.

Samples of R rays come in one of two forms:

- packed: tensors [N] with the samples of all rays one ray after the other, and `ray_indices` [N] int64, not decreasing,
  that name the ray of each. Rays may have different numbers of samples, or none.
- dense: tensors [R, S], S samples on every ray; `ray_indices` is None.

With density sigma_i constant over the interval [t_start_i, t_end_i] (Max 1995; Mildenhall et al. 2020, eq. 3):

    alpha_i = 1 - exp(-sigma_i (t_end_i - t_start_i)),   T_i = exp(-sum_{j<i} sigma_j (t_end_j - t_start_j)),
    weight_i = T_i alpha_i
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.utils.triton_support import triton_runs


class RayWeights(NamedTuple):
    """What volume rendering knows of each sample; all three in the shape of the samples."""

    weights: Tensor
    """Share of the light of this sample that reaches the eye; a ray's weights sum to its opacity."""
    transmittance: Tensor
    """Share of light that passes everything before this sample."""
    alphas: Tensor
    """Share of light this sample stops."""


class _RaySum(torch.autograd.Function):
    """Sum over the samples of the same ray before each sample, or after it: each is the other's gradient."""

    @staticmethod
    def forward(ctx, values: Tensor, starts: Tensor, reverse: bool) -> Tensor:
        from threestudio.utils.ray_scan_triton import exclusive_ray_sum  # only there is Triton sure to be

        ctx.save_for_backward(starts)
        ctx.reverse = reverse
        return exclusive_ray_sum(values, starts, reverse)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        return _RaySum.apply(g, ctx.saved_tensors[0], not ctx.reverse), None, None


def exclusive_sum(values: Tensor, ray_indices: Tensor | None = None, n_rays: int | None = None) -> Tensor:
    """Sum of `values` over the samples of the same ray before each sample.

    Packed samples are laid out one ray per row for this: one running sum over all rays would need float64, which not
    every device has, to keep the digits of the last ray, and a NaN on one ray would reach all later ones.

    Args:
        values: [N] packed, or [R, S].  ray_indices: [N], or None.
        n_rays: number of rays, if known; with it, a GPU on which Triton runs does it without the host waiting.
    """
    if ray_indices is None:
        shifted = torch.cat([torch.zeros_like(values[..., :1]), values[..., :-1]], dim=-1)
        return shifted.cumsum(dim=-1)
    if values.numel() == 0:
        return values
    if n_rays is not None and triton_runs(values.device):
        starts = torch.searchsorted(ray_indices, torch.arange(n_rays + 1, device=values.device))
        return _RaySum.apply(values, starts, False)
    _, row, counts = torch.unique_consecutive(ray_indices, return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    width = int(counts.max()) + 1
    place = row * width + torch.arange(len(values), device=values.device) - starts[row]
    # One place to the right, so that the inclusive sum of the row is the exclusive sum of the ray.
    rows = values.new_zeros(len(counts) * width).index_put((place + 1,), values)
    return rows.view(-1, width).cumsum(dim=1).view(-1)[place]


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> RayWeights:
    """Weights of samples with constant density between their ends; differentiable in all three.

    Args:
        t_starts, t_ends: distances along the ray, [N] packed or [R, S].
        sigmas: densities per unit of t, not negative, in the same shape; half precision is raised to that of `t_ends`.
        ray_indices: [N], or None for the dense form.  n_rays: see `exclusive_sum`.
    """
    depth = sigmas.to(t_ends.dtype) * (t_ends - t_starts)  # optical depth of each sample
    transmittance = torch.exp(-exclusive_sum(depth, ray_indices, n_rays))
    alphas = -torch.expm1(-depth)  # 1 - exp(-x) would lose thin samples to rounding
    return RayWeights(transmittance * alphas, transmittance, alphas)


@torch.no_grad()
def render_visibility_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    ray_indices: Tensor | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float | Tensor = 0.0,
    n_rays: int | None = None,
) -> Tensor:
    """Which samples are worth rendering: enough light gets to them and they stop enough of it. Not differentiable.

    Args:
        early_stop_eps: samples with less transmittance are dropped.
        alpha_thre: samples with a smaller alpha are dropped.
        n_rays: see `exclusive_sum`.

    Returns:
        bool, in the shape of the samples.
    """
    _, transmittance, alphas = render_weight_from_density(t_starts, t_ends, sigmas, ray_indices, n_rays)
    return (transmittance >= early_stop_eps) & (alphas >= alpha_thre)


def accumulate_along_rays(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Weighted sum over the samples of each ray.

    Args:
        weights: [N] packed or [R, S].
        values: [N, C] or [R, S, C]; None sums the weights themselves (C = 1).
        ray_indices, n_rays: of packed samples; rays without samples get zero.

    Returns:
        [n_rays, C].
    """
    weighted = weights[..., None] if values is None else weights[..., None] * values.to(weights.dtype)
    if ray_indices is None:
        return weighted.sum(dim=-2)
    if n_rays is None:
        raise TypeError("accumulate_along_rays needs n_rays with ray_indices: rays without samples count too.")
    return weighted.new_zeros(n_rays, weighted.shape[-1]).index_add(0, ray_indices, weighted)
