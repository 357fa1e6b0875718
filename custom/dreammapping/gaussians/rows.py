"""Edits of the list of Gaussians that keep parameters and Adam's moments row for row together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .optimizer import OptimizerView


@torch.no_grad()
def rebuild(
    params: nn.ParameterDict,
    optimizers: Mapping[str, OptimizerView],
    source: Tensor,
    fresh: Tensor,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Replace the list of Gaussians by one whose row i comes from the old row `source[i]`.

    One pass over memory for any mixture of copying, splitting and removing. The tensors become new Parameters (a graph that
    is still alive remembers the old shapes), in `params` and in the optimizer.

    Args:
        params: the raw tensors, each with N rows.
        optimizers: `optimizer_views` of the one Adam.
        source: [M] old row of each new row.
        fresh: [M] bool, rows whose moments start at zero; the others keep those of their source.
        values: new content [M, ...] by name, for tensors that are not plain copies.
    """
    values = values or {}
    for name, old in list(params.items()):
        content = values[name] if name in values else old.data[source]
        new = nn.Parameter(content.to(old.data), requires_grad=old.requires_grad)
        params[name] = new
        view = optimizers.get(name)
        if view is None:
            continue
        state = view.state.pop(old, {})
        for key, moment in _moments(state, old):
            moved = moment[source]
            moved[fresh] = 0
            state[key] = moved
        view.param_groups[0]["params"] = [new]
        if state:
            view.state[new] = state


@torch.no_grad()
def zero_moments(
    params: nn.ParameterDict,
    optimizers: Mapping[str, OptimizerView],
    rows: Tensor | None = None,
    names: Iterable[str] | None = None,
) -> None:
    """Forget Adam's moments of some rows ([R] indices or a mask; none: all) of some tensors (none: all)."""
    for name in params if names is None else names:
        if name in optimizers:
            for _, moment in _moments(optimizers[name].state.get(params[name], {}), params[name]):
                moment[slice(None) if rows is None else rows] = 0


def _moments(state: Mapping[str, Tensor], parameter: Tensor) -> list[tuple[str, Tensor]]:
    """The entries of an optimizer's state that have a value for each element; `step` has not."""
    return [(k, v) for k, v in state.items() if isinstance(v, Tensor) and k != "step" and v.shape == parameter.shape]
