"""Optimizers that torch does not bring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from threestudio.errors import ConfigError


class Adan(Optimizer):
    """Adaptive Nesterov momentum (Xie et al., 2022, arXiv 2208.06677, Algorithm 1), with bias corrections.

    With the gradient g_k and its change d_k = g_k - g_{k-1} (zero at the first step):

        m_k = b1 m + (1 - b1) g_k,   v_k = b2 v + (1 - b2) d_k,   n_k = b3 n + (1 - b3) (g_k + b2 d_k)^2
        x  <- (x - lr (m_k + b2 v_k) / (sqrt(n_k) + eps)) / (1 + lr weight_decay)

    The betas here are decay rates as in Adam, one minus those of the paper.

    Args:
        max_grad_norm: scale all gradients down together to this norm; 0 leaves them.
        no_prox: multiply by (1 - lr weight_decay) before the step instead of dividing after it.
        foreach: accepted for compatibility; the update is the same.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        foreach: bool = True,
    ) -> None:
        if len(betas) != 3 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ConfigError(f"Adan's betas are three numbers in [0, 1), not {betas}.")
        if lr < 0 or eps < 0 or weight_decay < 0 or max_grad_norm < 0:
            raise ConfigError("Adan's lr, eps, weight_decay and max_grad_norm must not be negative.")
        defaults = dict(
            lr=lr,
            betas=tuple(betas),
            eps=eps,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            no_prox=no_prox,
            foreach=foreach,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = self._clip_factor()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad * scale, group)
        return loss

    def _clip_factor(self) -> float | Tensor:
        limit = self.defaults["max_grad_norm"]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if limit == 0 or not gradients:
            return 1.0
        norm = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
        return torch.clamp(limit / (norm + self.defaults["eps"]), max=1.0)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_diff", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter)
            state["previous_grad"] = gradient.clone()
        state["step"] += 1
        beta1, beta2, beta3 = group["betas"]
        change = gradient - state["previous_grad"]
        nesterov = gradient + beta2 * change
        state["exp_avg"].lerp_(gradient, 1.0 - beta1)
        state["exp_avg_diff"].lerp_(change, 1.0 - beta2)
        state["exp_avg_sq"].mul_(beta3).addcmul_(nesterov, nesterov, value=1.0 - beta3)
        state["previous_grad"].copy_(gradient)

        correction1, correction2, correction3 = (1.0 - beta ** state["step"] for beta in (beta1, beta2, beta3))
        denominator = state["exp_avg_sq"].sqrt().div_(math.sqrt(correction3)).add_(group["eps"])
        direction = state["exp_avg"] / correction1 + beta2 * state["exp_avg_diff"] / correction2
        decay = group["lr"] * group["weight_decay"]
        if group["no_prox"]:
            parameter.mul_(1.0 - decay)
        parameter.addcdiv_(direction, denominator, value=-group["lr"])
        if not group["no_prox"]:
            parameter.div_(1.0 + decay)
