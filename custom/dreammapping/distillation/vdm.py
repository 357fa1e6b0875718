"""Variational Distribution Mapping with Distribution Coefficient Annealing (DreamMapping, Cai et al. 2024, section 4).

    L_op  = |M_psi(e_c) - eps|^2                       M_psi learns the noise of the rendered image (eq. 17)
    lam_t = 1 - alpha_bar_t for t <= 300, else 1                                                    (eq. 18)
    R     = e_c - lam_t M_psi(e_c) + s (e_c - e_u)                                 (eq. 19 inside eq. 10)

The paper leaves several choices open; each is a setting whose default is the most literal reading. Beyond the paper are
`dca` (lam_t measured or learned), `psi_start` (M trained beforehand) and `m_time_cond` (M knows t).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..degradation import build_operator
from ..degradation.pretrained import OperatorKind, start_operator
from ..errors import ConfigError
from .auxiliary import AuxiliaryUpdate
from .cfg import Guided
from .dca import CutOff, Fixed, build_coefficient
from .draw import NoisyDraw
from .loss import LossContext, ScoreLoss, ScoreResult, register_loss
from .teacher import Cost, PromptedTeacher

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass
class VDMSettings:
    """Options of VDM + DCA; the defaults are the paper's."""

    cfg_place: Literal["outside", "inside", "none"] = "outside"
    """Where guidance enters. outside: R = e_cfg - lam M(e_c); inside, only as M's input: R = e_c - lam M(e_cfg);
    none: eq. 19 alone."""
    m_input: Literal["cond", "cfg"] = "cond"
    """What M reads (and is trained on): the plain conditional prediction (eqs 17, 19) or the guided one."""
    op_weight: Literal["none", "one_minus_alpha_bar"] = "none"
    """Weight of L_op per image: eq. 17 has none; eq. 16 would give 1 - alpha_bar."""
    op_tmin: int = 0
    """Images with a smaller t do not train M."""
    dca_cutoff: int | None = 300
    """Steps up to this one use lam = 1 - alpha_bar, others 1. None (or -1): no annealing."""
    dca_inclusive: bool = True
    """t = cutoff belongs to the annealed side (eq. 18: t <= 300; Algorithm 1: t < 300)."""
    dca: dict[str, Any] = field(default_factory=lambda: {"type": "fixed"})
    """Where lam_t comes from. `type`: fixed (the cut-off), measured, learned; the other keys are its own."""
    jac_sqrt_ab: bool = False
    """Multiply by sqrt(alpha_bar) = dx_t/dx_0, which eq. 19 writes and common practice drops."""
    psi_lookahead: bool = False
    """The residual uses M after this step's update instead of before (one more pass of M)."""
    psi_steps: int = 1
    """Updates of M per step."""
    psi_warmup: int = 0
    """During the first steps the residual uses M's training target eps in M's place (SDS with lam), while M trains."""
    psi_opt: Literal["adam", "adamw", "sgd"] = "adam"
    psi_lr: float = 0.01
    """The paper's learning rate of M."""
    psi_betas: tuple[float, float] = (0.9, 0.999)
    psi_weight_decay: float = 0.0
    operator: str = "nonlinear"
    """nonlinear (U-Lite), linear, nonlinear_noise: the paper's Figure 7."""
    stages: int | None = None
    """U-Lite's halvings; None: the paper's five, fewer if the latents are small."""
    width: int | None = None
    """U-Lite's channels at full resolution; None: the published 16."""
    linear_init: Literal["ones", "normal"] = "ones"
    bn_mode: Literal["train", "eval", "groupnorm"] = "train"
    """Normalization in M: batch statistics always; running statistics for the residual; or GroupNorm."""
    m_time_cond: bool = False
    """Let M know t: factors and offsets of its input and answer that depend on it."""
    psi_start: str | None = None
    """Folder with operator.safetensors and card.json, which M starts from (degradation/train.py); None: random."""
    psi_any_weights: bool = False
    """Accept an operator that was trained for other weights than the teacher's."""
    m_dtype: Literal["float32", "bfloat16", "float64"] = "float32"

    def __post_init__(self) -> None:
        if self.cfg_place == "none" and self.m_input == "cfg":
            raise ConfigError(
                "loss: cfg_place none with m_input cfg would be cfg_place inside; choose that or m_input cond"
            )
        if self.psi_steps < 0 or self.psi_warmup < 0:
            raise ConfigError("loss: psi_steps and psi_warmup must not be negative")


@register_loss("vdm")
class VDM(ScoreLoss):
    """R = e_cfg - lam_t M_psi(e_c), M_psi trained to answer eps."""

    Settings = VDMSettings
    small_operations = True

    def __init__(self, settings: VDMSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        s = settings
        self.operator = self._operator(context).to(DTYPES[s.m_dtype])
        cut_off = CutOff(s.dca_cutoff, s.dca_inclusive)
        self.coefficient = build_coefficient(s.dca, context.teacher.schedule, cut_off)
        self.update = AuxiliaryUpdate(
            s.psi_opt,
            s.psi_lr,
            s.psi_betas,
            weight_decay=s.psi_weight_decay,
            steps=s.psi_steps,
            lookahead=s.psi_lookahead,
        )

    def _operator(self, context: LossContext) -> torch.nn.Module:
        """M_psi as a run starts with it, on the CPU in float32."""
        s, teacher = self.settings, context.teacher
        norm = "group" if s.bn_mode == "groupnorm" else "batch"
        kind = OperatorKind(s.operator, s.stages, norm, s.m_time_cond, s.width)
        operator = build_operator(
            kind.operator,
            context.latent_shape,
            generator=context.generator,
            stages=kind.stages,
            linear_init=s.linear_init,
            norm=kind.norm,
            time_steps=teacher.schedule.steps if kind.time_cond else None,
            width=kind.width,
        )
        if s.psi_start is not None:
            start_operator(
                operator,
                s.psi_start,
                kind,
                teacher=getattr(teacher, "name", "the teacher"),
                fingerprint=getattr(teacher, "fingerprint", ""),
                latent_shape=context.latent_shape,
                steps=teacher.schedule.steps,
                any_weights=s.psi_any_weights,
            )
        return operator

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        return Cost(1 if self.settings.cfg_place == "none" else guided)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Guided:
        if self.settings.cfg_place == "none":  # one network evaluation per image instead of two
            cond = teacher.predict(draw.noisy, draw.t, "cond")["cond"]
            return Guided(cond, cond, cond)
        return teacher.guided(draw.noisy, draw.t)

    def forward(self, draw: NoisyDraw, answers: Guided) -> ScoreResult:
        s = self.settings
        read = answers.guided if s.m_input == "cfg" or s.cfg_place == "inside" else answers.cond
        mapped = self.degrade(read, draw)
        auxiliary = {}
        if self._trains(draw):
            auxiliary["op"] = self.operator_loss(mapped, draw)
        with torch.no_grad():
            own = self.degrade(read, draw, training=False) if s.bn_mode == "eval" else mapped.detach()
        if (error := self.coefficient.loss(draw, own)) is not None:
            auxiliary["dca"] = error
        with torch.no_grad():
            lam = self.coefficient(draw)
            self.coefficient.observe(draw, answers.cond, own)
            if draw.step < s.psi_warmup:
                own = draw.noise
            base = answers.guided if s.cfg_place == "outside" else answers.cond
            unconditional = base - lam * own
            residual = unconditional * draw.alpha_bar.sqrt() if s.jac_sqrt_ab else unconditional
            diagnostics = {
                "cos_m_eps": torch.cosine_similarity(mapped.detach().flatten(1), draw.noise.flatten(1)).mean(),
                "norm_unconditional": rms(answers.cond - lam * own),
                "norm_guidance": rms(answers.term),
                "dca_coefficient": lam.mean(),
            }
        return ScoreResult(residual, auxiliary, diagnostics)

    def decisions(self, draw: NoisyDraw) -> Hashable | None:
        if not isinstance(self.coefficient, Fixed):  # the others learn on the host
            return None
        return self._trains(draw), draw.step < self.settings.psi_warmup

    def _trains(self, draw: NoisyDraw) -> bool:
        return bool((draw.t_host >= self.settings.op_tmin).any())

    def degrade(self, eps: Tensor, draw: NoisyDraw, training: bool = True) -> Tensor:
        """M_psi(eps) [B,C,h,w] in eps's dtype, with graph to psi."""
        if self.operator.training != training:  # whoever switches the whole system to eval must not change M
            self.operator.train(training)
        return self.operator(eps.to(DTYPES[self.settings.m_dtype]), draw.t).to(eps.dtype)

    def operator_loss(self, mapped: Tensor, draw: NoisyDraw) -> Tensor:
        """L_op = mean |M(e) - eps|^2 over the images with t >= op_tmin (eq. 17)."""
        error = (mapped - draw.noise).square().mean((1, 2, 3))
        if self.settings.op_weight == "one_minus_alpha_bar":
            error = error * (1 - draw.alpha_bar.flatten())
        if self.settings.op_tmin <= 0:
            return error.mean()
        trains = (draw.t >= self.settings.op_tmin).to(error.dtype)
        return (error * trains).sum() / trains.sum()


def rms(x: Tensor) -> Tensor:
    """Root mean square over everything, a scalar."""
    return x.square().mean().sqrt()
