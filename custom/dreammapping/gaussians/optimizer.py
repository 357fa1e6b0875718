"""One Adam for all parameters, and gsplat's view of it.

gsplat's densification operations expect a dict of optimizers, one for each parameter. Lightning counts one step for each
optimizer, and one fused Adam is faster than six. So there is one optimizer with a named group for each parameter, and
`optimizer_views` shows each group in the shape gsplat asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .learning_rates import LogLinear
from .model import PARAMETER_NAMES, GaussianModel

GROUP_PREFIX = "gaussians."
"""Names of the groups are this plus the parameter's name."""

ADAM_EPS = 1e-15
"""3D Gaussian Splatting's epsilon: gradients of positions can be far below Adam's usual 1e-8."""


def parameter_groups(model: GaussianModel, schedules: Mapping[str, LogLinear], step: int = 0) -> list[dict[str, Any]]:
    """One named group for each parameter tensor, for one torch Adam. Learning rates as of `step`."""
    return [
        {"params": [model.params[name]], "lr": schedules[name](step), "eps": ADAM_EPS, "name": GROUP_PREFIX + name}
        for name in PARAMETER_NAMES  # a fixed order: an optimizer's saved state knows its parameters by their place
    ]


def update_learning_rates(optimizer: torch.optim.Optimizer, schedules: Mapping[str, LogLinear], step: int) -> None:
    """Set the learning rate of every group made by `parameter_groups`; other groups are left alone."""
    for group in optimizer.param_groups:
        name = group.get("name") or ""
        if name.startswith(GROUP_PREFIX):
            group["lr"] = schedules[name.removeprefix(GROUP_PREFIX)](step)


def build_adam(groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Adam:
    """The fastest plain Adam for these groups: fused where the device has it (CPU, CUDA), else the default."""
    parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(groups, betas=betas, fused=fused or None)


class OptimizerView:
    """One group of a shared optimizer in the shape of a torch optimizer that owns nothing else."""

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        self._optimizer = optimizer
        self._group = group

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The one group."""
        return [self._group]

    @property
    def state(self) -> dict[Tensor, Any]:
        """The shared optimizer's state, keyed by parameter."""
        return self._optimizer.state


def optimizer_views(optimizer: Any) -> dict[str, OptimizerView]:
    """A view on each group made by `parameter_groups`, under the parameter's name: what gsplat calls `optimizers`.

    Accepts Lightning's wrapper as well: its copy of `state` goes stale when a checkpoint is loaded, so the wrapped one is used.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    named = {group.get("name") or "": group for group in inner.param_groups}
    return {
        name.removeprefix(GROUP_PREFIX): OptimizerView(inner, group)
        for name, group in named.items()
        if name.startswith(GROUP_PREFIX)
    }
