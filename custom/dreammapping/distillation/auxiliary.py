"""Training of a loss's own parameters (an operator, a LoRA, an embedding) beside the 3D model's optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..processes import average_over_processes
from ..registry import Registry

OPTIMIZERS: Registry[type[torch.optim.Optimizer]] = Registry("auxiliary optimizer")
OPTIMIZERS.register("adam")(torch.optim.Adam)
OPTIMIZERS.register("adamw")(torch.optim.AdamW)
OPTIMIZERS.register("sgd")(torch.optim.SGD)


@dataclass(frozen=True)
class AuxiliaryUpdate:
    """How auxiliary parameters are trained."""

    optimizer: str = "adam"
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's; SGD uses the first as momentum."""
    eps: float = 1e-8
    weight_decay: float = 0.0
    steps: int = 1
    """Updates per draw."""
    lookahead: bool = False
    """True: the residual uses the parameters after this draw's updates. False: before (Algorithm 1 as printed)."""


class AuxiliaryOptimizer:
    """The optimizer of a loss's parameters, restorable before the parameters have reached their device."""

    def __init__(self, parameters: Iterable[nn.Parameter], update: AuxiliaryUpdate, *, shared_out: bool = True) -> None:
        """`shared_out`: each of several processes brings the loss of its own part of the batch."""
        self.update, self.shared_out = update, shared_out
        self.parameters = [p for p in parameters if p.requires_grad]
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] | None = None

    def step(self, loss: Tensor) -> None:
        """One update on a scalar loss; touches no gradient but those of its own parameters."""
        optimizer = self._ready()
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        if self.shared_out:
            average_over_processes(gradients)  # what a loss learns is outside the trainer's own synchronization
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = None if gradient is None else _laid_out_like(parameter, gradient)
        optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        if self._restored is not None:
            return self._restored
        return self._ready().state_dict()

    def tensors(self) -> list[Tensor]:
        """What an update changes in place beside the parameters; empty before the first."""
        states = [] if self._optimizer is None else self._optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Kept until the first step: by then the parameters are on the device they will stay on.
        self._restored = dict(state)

    def _ready(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            self._optimizer = self._build()
        if self._restored is not None:
            self._optimizer.load_state_dict(self._restored)
            self._restored = None
        for group in self._optimizer.param_groups:
            if "capturable" in group:  # as a CUDA graph, see recorded_update.py; a state may come from another device
                group["capturable"] = self._on_cuda()
        return self._optimizer

    def _build(self) -> torch.optim.Optimizer:
        u = self.update
        cls = OPTIMIZERS.get(u.optimizer)
        options: dict[str, Any] = {"lr": u.lr, "weight_decay": u.weight_decay}
        options |= {"momentum": u.betas[0]} if u.optimizer == "sgd" else {"betas": u.betas, "eps": u.eps}
        try:  # one kernel for all tensors: an operator has about a hundred small ones
            return cls(self.parameters, fused=True, **options)
        except RuntimeError:  # a device without fused kernels
            return cls(self.parameters, foreach=True, **options)

    def _on_cuda(self) -> bool:
        return bool(self.parameters) and all(p.device.type == "cuda" for p in self.parameters)


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """`gradient` with the strides of `parameter`: convolutions on CUDA return channels-last ones, and the fused
    optimizers refuse those."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
