"""The forward diffusion: alpha_bar per integer step and everything that follows from it by algebra.

x_t = a x_0 + sig eps        a = sqrt(alpha_bar_t), sig = sqrt(1 - alpha_bar_t)
v   = a eps - sig x_0        (velocity, Salimans & Ho 2022)

Flow matching (rectified flow: Liu et al. 2023; Esser et al. 2024) mixes along a straight line instead,

    z_s = (1 - s) x_0 + s eps,    u = dz/ds = eps - x_0,    0 <= s <= 1,

which is the same mixture up to its length n = sqrt((1 - s)^2 + s^2): with a = (1 - s) / n and sig = s / n,

    x_t = z_s / n        n = 1 / (a + sig)        s = sig / (a + sig)        eps = (x_t + a u) / (a + sig).

So a flow model has an alpha_bar = (1 - s)^2 / n^2 too, and everything said in x_t, a, sig and eps holds for it as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NoiseSchedule:
    """alpha_bar [T] of a diffusion model, T integer steps 0..T-1; `t` is always a [B] integer tensor.

    Coefficients come back as [B,1,1,1] in the dtype and on the device of the tensor they are for.
    """

    def __init__(self, alpha_bar: Tensor) -> None:
        if alpha_bar.ndim != 1 or not bool(((alpha_bar >= 0) & (alpha_bar <= 1)).all()):
            raise ValueError(f"alpha_bar must be a vector with values in [0, 1], got shape {tuple(alpha_bar.shape)}")
        self.alpha_bar = alpha_bar.detach().to("cpu", torch.float64)
        self._tables = {
            "alpha_bar": self.alpha_bar,
            "a": self.alpha_bar.sqrt(),
            "sig": (1 - self.alpha_bar).sqrt(),  # before rounding: a flow model's alpha_bar comes very close to 1
        }
        self._copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> NoiseSchedule:
        """Stable Diffusion's schedule: sqrt(beta) linear in the step."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - betas, 0))

    @classmethod
    def from_flow(cls, s: Tensor) -> NoiseSchedule:
        """That of a flow model whose step t has the noise share s_t: s [T] in [0, 1], rising with t."""
        s = s.double()
        return cls((1 - s) ** 2 / ((1 - s) ** 2 + s**2))

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.alpha_bar)

    def at(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_bar_t [B,1,1,1] for `like` [B,C,h,w]."""
        return self._at("alpha_bar", t, like)

    def table(self, like: Tensor) -> Tensor:
        """alpha_bar [T] with the dtype and device of `like`; copied once per device."""
        return self._table("alpha_bar", like)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a, sig), each [B,1,1,1]."""
        return self._at("a", t, like), self._at("sig", t, like)

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        return self._table(name, like)[t.to(like.device)].view(-1, *[1] * (like.ndim - 1))

    def _table(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = self._tables[name].to(like.device, like.dtype)
        return self._copies[key]

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a x_0 + sig eps."""
        a, sig = self.coefficients(t, clean)
        return a * clean + sig * noise

    def x0_from_eps(self, noisy: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        a, sig = self.coefficients(t, noisy)
        return (noisy - sig * eps) / a

    def eps_from_x0(self, noisy: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        a, sig = self.coefficients(t, noisy)
        return (noisy - a * x0) / sig

    def eps_from_v(self, noisy: Tensor, v: Tensor, t: Tensor) -> Tensor:
        a, sig = self.coefficients(t, noisy)
        return a * v + sig * noisy

    def x0_from_v(self, noisy: Tensor, v: Tensor, t: Tensor) -> Tensor:
        a, sig = self.coefficients(t, noisy)
        return a * noisy - sig * v

    def v_from_eps(self, noisy: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        a, sig = self.coefficients(t, noisy)
        return (eps - sig * noisy) / a

    def eps_from_flow(self, noisy: Tensor, u: Tensor, t: Tensor) -> Tensor:
        a, sig = self.coefficients(t, noisy)
        return (noisy + a * u) / (a + sig)

    def flow_state(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(z_s [B,C,h,w], s [B,1,1,1]): x_t and t as a flow model knows them."""
        a, sig = self.coefficients(t, noisy)
        return noisy / (a + sig), sig / (a + sig)

    def eps_from_output(self, prediction_type: str, noisy: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """eps from what a model of that kind answers for x_t: `epsilon`, `v_prediction`, `sample` or `flow_prediction`
        (diffusers' names)."""
        if prediction_type == "flow_prediction":
            return self.eps_from_flow(noisy, output, t)
        if prediction_type == "v_prediction":
            return self.eps_from_v(noisy, output, t)
        return self.eps_from_x0(noisy, output, t) if prediction_type == "sample" else output

    def target(self, prediction_type: str, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a model of that kind learns to answer for x_t made of `clean` and `noise`."""
        if prediction_type == "v_prediction":
            a, sig = self.coefficients(t, clean)
            return a * noise - sig * clean
        if prediction_type == "flow_prediction":
            return noise - clean
        return clean if prediction_type == "sample" else noise

    def ddim_step(
        self, noisy: Tensor, eps: Tensor, t: Tensor, t_next: Tensor, *, eta: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """One DDIM jump from t to t_next, in either direction (Song et al. 2021, eq. 12).

        Deterministic, it is an Euler step of the probability-flow ODE of x / a in sig / a (their eq. 14). A negative t
        or t_next means clean (alpha_bar = 1). `eta` > 0 needs `noise` [B,C,h,w] and t_next <= t.
        """
        alpha_bar, alpha_next = self._at_or_clean(t, noisy), self._at_or_clean(t_next, noisy)
        x0 = (noisy - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        if noise is None or eta == 0:
            return alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * eps
        fresh = eta * self.ddim_sigma(t, t_next, noisy)
        step = alpha_next.sqrt() * x0 + (1 - alpha_next - fresh**2).clamp(min=0).sqrt() * eps
        return step + fresh * noise

    def ddim_sigma(self, t: Tensor, t_less: Tensor, like: Tensor) -> Tensor:
        """Noise level [B,1,1,1] of a DDIM jump from t down to t_less with eta = 1 (their eq. 16)."""
        alpha_bar, alpha_less = self._at_or_clean(t, like), self._at_or_clean(t_less, like)
        return ((1 - alpha_less) / (1 - alpha_bar) * (1 - alpha_bar / alpha_less)).clamp(min=0).sqrt()

    def _at_or_clean(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_bar_t [B,1,1,1], 1 where t is negative."""
        alpha_bar = self.at(t.clamp(min=0), like)
        return torch.where(t.to(like.device).view_as(alpha_bar) < 0, 1.0, alpha_bar)
