"""Samples where a small network expects weight; the network learns from the field (mip-NeRF 360, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from threestudio.models.estimators.importance import (
    DensityFn,
    as_column,
    resample,
    spacing_function,
    uniform_start,
    weights_of,
)


def outer_bound_loss(edges: Tensor, weights: Tensor, prop_edges: Tensor, prop_weights: Tensor) -> Tensor:
    """Weight of the field that the proposal's histogram cannot explain (mip-NeRF 360, eq. 12 and 13).

    Args:
        edges, weights: [R, S + 1] and [R, S], the field's histogram; no gradient flows to it.
        prop_edges, prop_weights: [R, K + 1] and [R, K], the proposal's.

    Returns:
        Scalar, the mean of max(0, w - bound)^2 / w, where bound is the weight of all proposal intervals that touch w's.
    """
    edges, weights = edges.detach(), weights.detach()
    inner = prop_edges[:, 1:-1].detach().contiguous()
    first = torch.searchsorted(inner, edges[:, :-1].contiguous(), right=True)
    last = torch.searchsorted(inner, edges[:, 1:].contiguous(), right=False)
    last = torch.maximum(first, last)  # an interval of length zero on an edge touches the one it lies in
    sums = torch.cat([torch.zeros_like(prop_weights[:, :1]), prop_weights.cumsum(-1)], dim=-1)
    bound = sums.gather(-1, last + 1) - sums.gather(-1, first)
    return ((weights - bound).clamp(min=0.0).square() / (weights + 1e-7)).mean()


class PropNetEstimator(nn.Module):
    """Intervals from the weights of proposal networks, which have their own optimizer.

    The networks learn in steps that `wants_gradient` picks: nearly all at first, every sixth in the end. Their loss
    needs the field's weights, so it is taken at the end of the step: `sampling`, then `remember`, then
    `update_every_n_steps`. The optimizer's state, the scheduler's and the step of the last update are part of the
    state dict, so that a resumed run goes on as if it had not stopped.

    Args:
        optimizer: of the proposal networks' parameters.
        scheduler: of that optimizer; advances every step.
    """

    TARGET_PAUSE, RAMP_STEPS = 5.0, 1000  # the pause between updates grows linearly to this over so many steps

    def __init__(self, optimizer: Optimizer, scheduler: Any = None) -> None:
        super().__init__()
        self._optimizer, self._scheduler = optimizer, scheduler
        self._last_update = -1  # so the first step learns
        self._proposals: list[tuple[Tensor, Tensor]] = []  # edges and weights of each pass
        self._edges: Tensor | None = None
        self._weights: Tensor | None = None
        self.register_buffer("_probe", torch.zeros(0), persistent=False)  # knows the device

    def wants_gradient(self, step: int) -> bool:
        """Whether the networks learn in this step; the same answer however often it is asked."""
        pause = min(step / self.RAMP_STEPS, 1.0) * self.TARGET_PAUSE
        return step - self._last_update > pause

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
        """Ends t_starts, t_ends [n_rays, num_samples] of intervals that cover each ray from near to far.

        Arguments as for `ImportanceEstimator.sampling`; with `requires_grad` the proposals are kept for the loss.
        """
        self._forget()
        edges, weights = uniform_start(self._probe.new_zeros(n_rays, 1))
        to_t = spacing_function(sampling_type, as_column(near_plane, edges), as_column(far_plane, edges))
        for density, count in zip(prop_sigma_fns, prop_samples, strict=True):
            edges = resample(edges, weights, count, stratified)
            with torch.set_grad_enabled(requires_grad):
                weights = weights_of(density, to_t(edges))
            if requires_grad:
                self._proposals.append((edges, weights))
        edges = resample(edges, weights, num_samples, stratified)
        if requires_grad:
            self._edges = edges
        t = to_t(edges)
        return t[:, :-1], t[:, 1:]

    def remember(self, weights: Tensor) -> None:
        """Hand in the field's weights [n_rays, num_samples] on the intervals of the last `sampling`."""
        self._weights = weights.detach()

    def compute_loss(self) -> Tensor:
        """Loss of the proposals since the last `sampling`; zero if none were kept."""
        if not self._proposals or self._edges is None or self._weights is None:
            return self._probe.new_zeros(())
        return sum(outer_bound_loss(self._edges, self._weights, *proposal) for proposal in self._proposals)

    def update_every_n_steps(self, step: int, requires_grad: bool = False) -> float:
        """End `step`: one update of the networks if they were to learn in it. Returns their loss, else 0."""
        loss = 0.0
        if requires_grad and self._proposals and self._weights is not None:
            with torch.enable_grad():
                total = self.compute_loss()
            self._optimizer.zero_grad()
            total.backward()
            self._optimizer.step()
            self._last_update, loss = step, float(total.detach())
        if self._scheduler is not None and self._last_update >= 0:  # not before there was anything to schedule
            self._scheduler.step()
        self._forget()
        return loss

    def _forget(self) -> None:
        self._proposals, self._edges, self._weights = [], None, None

    # ---- life ----

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "optimizer": self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "last_update": self._last_update,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None and state["scheduler"] is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self._last_update = int(state["last_update"])
