"""Samples where a coarse look at the ray found weight (Mildenhall et al. 2020, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from threestudio.errors import ConfigError, UserError
from threestudio.utils.volume_rendering import render_weight_from_density

DensityFn = Callable[[Tensor, Tensor], Tensor]
"""t_starts [R, S], t_ends [R, S] -> densities [R, S]."""

_FLOOR = 1e-5  # weight every interval gets on top, as in NeRF: a ray that met nothing is sampled evenly


def resample(edges: Tensor, weights: Tensor, count: int, stratified: bool = False) -> Tensor:
    """Edges of `count` intervals with equal weight, from intervals with weights. Not differentiable.

    Args:
        edges: [R, K + 1], increasing.
        weights: [R, K], not negative; constant density of weight inside an interval.
        count: number of new intervals, at least 1.
        stratified: shift the inner edges of each ray by up to half an interval, by random numbers drawn on the CPU from
            torch's global generator.

    Returns:
        [R, count + 1], not decreasing, from the first old edge to the last.
    """
    weights = weights.detach() + _FLOOR
    cdf = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    quantiles = torch.arange(1, count, device=edges.device) / count
    quantiles = quantiles.to(edges).expand(len(edges), -1)
    if stratified:
        quantiles = quantiles + (torch.rand(len(edges), 1).to(edges) - 0.5) / count
    upper = torch.searchsorted(cdf, quantiles.contiguous(), right=True).clamp(1, weights.shape[-1])
    low, high = cdf.gather(-1, upper - 1), cdf.gather(-1, upper)
    share = ((quantiles - low) / (high - low)).clamp(0.0, 1.0)
    inner = torch.lerp(edges.gather(-1, upper - 1), edges.gather(-1, upper), share)
    return torch.cat([edges[:, :1], inner, edges[:, -1:]], dim=-1)


def spacing_function(sampling_type: str, near: Tensor, far: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from s in [0, 1] to distances [near, far] (both [R, 1]): "uniform", or "lindisp", even in 1 / t."""
    if sampling_type == "uniform":
        return lambda s: near + s * (far - near)
    if sampling_type != "lindisp":
        raise ConfigError(f"sampling_type is {sampling_type!r}; it must be 'uniform' or 'lindisp'.")
    if bool((near <= 0).any()):
        raise UserError("sampling_type lindisp is even in 1 / t, so near_plane must be positive.")
    return lambda s: 1.0 / (1.0 / near + s * (1.0 / far - 1.0 / near))


def as_column(distance: float | Tensor, like: Tensor) -> Tensor:
    """A number or a tensor [R] as [R, 1] in the dtype and on the device of `like` [R, ...]."""
    return torch.as_tensor(distance).to(like).expand(len(like)).unsqueeze(-1)


class ImportanceEstimator(nn.Module):
    """Coarse intervals, weighted by a density, decide where the fine ones lie. Without parameters or state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_probe", torch.zeros(0), persistent=False)  # knows the device

    @torch.no_grad()
    def sampling(
        self,
        prop_sigma_fns: Sequence[DensityFn],
        prop_samples: Sequence[int],
        num_samples: int,
        n_rays: int,
        near_plane: float | Tensor,
        far_plane: float | Tensor,
        sampling_type: str = "uniform",
        stratified: bool = False,
        requires_grad: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ends of S = prop_samples[-1] + num_samples intervals per ray that cover it from near to far.

        Args:
            prop_sigma_fns: densities, one per coarse pass; each pass resamples by the weights of the pass before.
            prop_samples: intervals of each coarse pass.
            num_samples: fine edges that are added to those of the last coarse pass.
            near_plane, far_plane: numbers or tensors [n_rays].
            sampling_type: see `spacing_function`.
            stratified: random shifts, see `resample`.
            requires_grad: accepted because the proposal estimator takes it; nothing here has a gradient.

        Returns:
            t_starts and t_ends, [n_rays, S].
        """
        edges, weights = uniform_start(self._probe.new_zeros(n_rays, 1))
        to_t = spacing_function(sampling_type, as_column(near_plane, edges), as_column(far_plane, edges))
        for density, count in zip(prop_sigma_fns, prop_samples, strict=True):
            edges = resample(edges, weights, count, stratified)
            weights = weights_of(density, to_t(edges))
        # Both ends are edges already, so only the inner ones are added.
        fine = resample(edges, weights, num_samples + 1, stratified)[:, 1:-1]
        t = to_t(torch.cat([edges, fine], dim=-1).sort(dim=-1).values)
        return t[:, :-1], t[:, 1:]


def uniform_start(like: Tensor) -> tuple[Tensor, Tensor]:
    """One interval [0, 1] with weight 1 per row of `like` [R, 1]: edges [R, 2] and weights [R, 1]."""
    return torch.cat([torch.zeros_like(like), torch.ones_like(like)], dim=-1), torch.ones_like(like)


def weights_of(density: DensityFn, t: Tensor) -> Tensor:
    """Rendering weights [R, S] of a density on the intervals between edges t [R, S + 1]."""
    t_starts, t_ends = t[:, :-1], t[:, 1:]
    return render_weight_from_density(t_starts, t_ends, density(t_starts, t_ends)).weights
