"""Score Distillation via Inversion, Lukoianov et al. 2024 (Score Distillation via Reparametrized DDIM).

    kappa = the noise of x_0 found by DDIM inversion up to t + U{0..J-1} with guidance -7.5
    x_t   = a x_0 + sig kappa
    R     = e_cfg(x_t, t, y) - kappa                                  SDS with kappa in place of random noise

The inversion starts at the clean image and jumps to 1, 1 + J, 1 + 2J, ... below t and then past t, J = T / n_steps;
after each jump come eta times a DDIM step's noise on top, as in the authors' code. Their loss |x_0 - x_0_hat|^2 / 2 is
this R under omega `snr`; their t falls linearly and all images share it (timesteps `anneal`). Both scales have the
same convention; Perp-Neg acts in every e_cfg.

Two slips of the authors' threestudio port are not repeated: it shows the clean image to the network as step 1 - J,
which is negative (here: step 0), and it takes x at t + delta for x_t (here kappa is carried over to t).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..processes import Rows
from ..transfers import to_device
from .cfg import Guided
from .draw import NoisyDraw
from .loss import ScoreLoss, register_loss
from .ode import walk
from .teacher import Cost, PromptedTeacher

CLEAN = -1


@dataclass
class SDISettings:
    """Options of SDI; the defaults are those of its code."""

    inversion_guidance_scale: float = -7.5
    """In the convention of guidance_scale."""
    inversion_n_steps: int = 10
    """Jumps over the whole schedule."""
    inversion_eta: float = 0.3
    """Fresh noise after each jump; 0: none."""
    overshoot: bool = True
    """The last jump goes up to J - 1 steps past t, at random; False: to t."""

    def __post_init__(self) -> None:
        if self.inversion_n_steps < 1 or self.inversion_eta < 0:
            raise ConfigError("loss: inversion_n_steps must be at least 1 and inversion_eta at least 0")


@dataclass(frozen=True)
class SDIAnswers:
    """What SDI learns from the teacher about one draw."""

    guided: Guided
    """At x_t."""
    kappa: Tensor
    """[B,C,h,w] the noise that inversion found."""


@register_loss("sdi")
class SDI(ScoreLoss):
    """R = e_cfg(x_t, t) - kappa, kappa the inverted noise of x_0, of which x_t is made."""

    Settings = SDISettings

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        t_only = torch.tensor([t])
        return Cost(guided * len(self.route(t_only, t_only)))

    def route(self, t: Tensor, end: Tensor) -> Tensor:
        """[N+1,B] the inversion's steps, on the CPU: clean, the grid below t, `end`, which repeats."""
        levels = range(1, int(t.max()), self.spacing)
        return torch.stack([torch.full_like(t, CLEAN), *(torch.where(level < t, level, end) for level in levels), end])

    @property
    def spacing(self) -> int:
        """J."""
        return max(self.context.teacher.schedule.steps // self.settings.inversion_n_steps, 1)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> SDIAnswers:
        schedule, end = teacher.schedule, draw.t_host
        if self.settings.overshoot:
            rows = Rows.of_process(len(end))
            past = rows.take(torch.randint(self.spacing, (rows.total,), generator=self.context.generator))
            end = (end + past).clamp(max=schedule.steps - 1)
        noisy = walk(
            draw.clean,
            self.route(draw.t_host, end),
            lambda x, t, part: part.guided(x, t).guided,
            teacher.at_scale(self.settings.inversion_guidance_scale),
            eta=self.settings.inversion_eta,
            generator=self.context.generator,
        )
        kappa = schedule.eps_from_x0(noisy, draw.clean, to_device(end.contiguous(), noisy.device))
        return SDIAnswers(teacher.guided(schedule.add_noise(draw.clean, kappa, draw.t), draw.t), kappa)

    def residual(self, draw: NoisyDraw, answers: SDIAnswers) -> Tensor:
        return answers.guided.guided - answers.kappa
