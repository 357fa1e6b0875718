"""One step of score distillation, common to all losses: draw, noise, ask, weight, clean, inject, update, count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..processes import Rows, process_count, together
from .auxiliary import AuxiliaryOptimizer
from .cfg import CFGConvention
from .draw import NoisyDraw, draw_noise
from .joint_update import joint_update
from .loss import ScoreLoss, ScoreResult
from .recorded_update import RecordedUpdate
from .teacher import NoisePredictor, PromptedTeacher
from .timesteps import Timesteps, Uniform
from .weighting import WEIGHTINGS


@dataclass
class DistillerSettings:
    """The numbers of a step. `guidance_scale` and `grad_clip` may be rewritten between steps (schedules)."""

    guidance_scale: float = 7.5
    cfg_convention: CFGConvention = CFGConvention.SEED
    """What guidance_scale means; see cfg.py."""
    anchor: Literal["empty", "negative"] = "empty"
    """The embedding guidance subtracts: the empty prompt (paper eq. 4) or the negative one (threestudio)."""
    weighting_strategy: str = "sds"
    grad_scale: float = 1.0
    grad_reduction: Literal["mean", "sum"] = "mean"
    """d loss / d latents is g / B (threestudio) or g (LucidDreamer)."""
    grad_clip: float | None = None
    """Each element of g is clamped to [-grad_clip, grad_clip]."""
    offset_noise: float = 0.0
    """Strength of the per-channel noise shared by the batch; LucidDreamer 0.1."""
    cuda_graphs: bool = True
    """On CUDA, launch what the loss trains as one recording, where the loss allows it (see ScoreLoss.decisions)."""


@dataclass(frozen=True)
class Distillation:
    """The outcome of one step."""

    loss: Tensor
    """Scalar whose gradient with respect to the latents is `gradient` (divided by B with the mean reduction). With several
    processes: whose average over them is that of the whole batch."""
    gradient: Tensor
    """[B,C,h,w] g = grad_scale omega(t) R, cleaned and clipped, without graph."""
    draw: NoisyDraw
    answers: Any
    """What the loss's teacher calls returned."""
    diagnostics: dict[str, Tensor]
    """Scalars on the latents' device; nothing here waits for it."""
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)
    """Losses, with graph, of parameters the caller's optimizer has to train; empty where the loss trains its own."""


def inject(latents: Tensor, gradient: Tensor, reduction: str = "mean") -> Tensor:
    """A scalar whose derivative with respect to `latents` is `gradient` / B (mean) or `gradient` (sum).

    Its value is 0.5 |gradient|^2, reduced alike: the squared distance to the point one step away.
    """
    target = (latents - gradient).detach()
    loss = 0.5 * torch.nn.functional.mse_loss(latents, target, reduction="sum")
    return loss / latents.shape[0] if reduction == "mean" else loss


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """One CPU thread inside, if `wanted`: for small tensors, waking a second one costs more than the work."""
    threads = torch.get_num_threads()
    if not wanted or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Distiller:
    """Binds a loss to a teacher; call it once per optimization step.

    `generator` (CPU) is the only source of randomness. `state_dict` holds what the loss's own parameters do not: the
    generator and the auxiliary optimizer.
    """

    def __init__(
        self,
        loss: ScoreLoss,
        teacher: NoisePredictor,
        settings: DistillerSettings,
        generator: torch.Generator,
        timesteps: Timesteps | None = None,
    ) -> None:
        self.loss = loss
        self.teacher = teacher
        self.settings = settings
        self.generator = generator
        self.timesteps = timesteps or Uniform()
        self.weighting = WEIGHTINGS.get(settings.weighting_strategy)
        self.optimizer: AuxiliaryOptimizer | None = None
        if loss.update:
            self.optimizer = AuxiliaryOptimizer(loss.parameters(), loss.update, shared_out=not loss.small_operations)
        self.recorded: RecordedUpdate | None = None
        if self.optimizer is not None and self.optimizer.parameters and settings.cuda_graphs:
            self.recorded = RecordedUpdate(self.update, loss, self.optimizer)

    def __call__(
        self,
        latents: Tensor,
        embeddings: Mapping[str, Tensor],
        *,
        step: int = 0,
        perp_neg_weights: Tensor | None = None,
        context: Mapping[str, Tensor] | None = None,
    ) -> Distillation:
        """latents [B,C,h,w] with graph; `embeddings` name -> [B,L,E] or [1,L,E]; `perp_neg_weights` [B,K]."""
        s = self.settings
        before = (self.teacher.calls.forwards, self.teacher.calls.backwards)
        draw = self.draw(latents, step, context or {})
        prompted = PromptedTeacher(
            self.teacher,
            embeddings,
            guidance_scale=s.guidance_scale,
            convention=s.cfg_convention,
            anchor=s.anchor,
            perp_neg_weights=perp_neg_weights,
        )
        answers = self.loss.ask(draw, prompted)
        result, auxiliary = self.learn(draw, answers)
        gradient = self.gradient(draw, result.residual)
        diagnostics = {
            **{name: value.detach() for name, value in result.diagnostics.items()},
            **{f"auxiliary_{name}": value.detach() for name, value in auxiliary.items()},
            "grad_norm": gradient.norm(),
            "residual_norm": result.residual.square().mean().sqrt(),
            "timestep": draw.t_host.float().mean(),
            "unet_forwards": torch.tensor((self.teacher.calls.forwards - before[0]) / len(latents)),
            "unet_backwards": torch.tensor((self.teacher.calls.backwards - before[1]) / len(latents)),
        }
        left = {} if self.optimizer else auxiliary
        loss = inject(latents, gradient, s.grad_reduction)
        if s.grad_reduction == "sum":  # the average over the processes is then the sum over the whole batch
            loss = loss * process_count()
        return Distillation(loss, gradient, draw, answers, diagnostics, left)

    def draw(self, latents: Tensor, step: int, context: Mapping[str, Tensor]) -> NoisyDraw:
        """t and eps from the generator, and x_t."""
        schedule = self.teacher.schedule
        clean = latents.detach()
        rows = Rows.of_process(len(clean))
        t_whole = self.timesteps.draw(rows.total, step, schedule.steps, self.generator)
        noise = draw_noise(clean, self.generator, self.settings.offset_noise)
        earlier = self.timesteps.earlier(len(clean), step, schedule.steps)
        draw = NoisyDraw.noised(clean, noise, rows.take(t_whole), schedule, step, context, earlier)
        return replace(draw, t_whole=t_whole)

    def learn(self, draw: NoisyDraw, answers: Any) -> tuple[ScoreResult, Mapping[str, Tensor]]:
        """`update`, recorded where that is possible, and of the whole batch where several processes do the same work."""
        update = self.recorded or self.update
        if together() and self.loss.small_operations:
            return joint_update(update, self.loss, draw, answers)
        return update(draw, answers)

    def update(self, draw: NoisyDraw, answers: Any) -> tuple[ScoreResult, Mapping[str, Tensor]]:
        """The result that gives the residual, and the auxiliary losses before any update of this step."""
        # The trainable part learns even where the caller measures without gradients.
        with torch.enable_grad(), one_thread(self.loss.small_operations and draw.clean.device.type == "cpu"):
            result = first = self.loss(draw, answers)
            if self.optimizer is None or not first.auxiliary:
                return first, first.auxiliary
            rule = self.optimizer.update
            for i in range(rule.steps):
                self.optimizer.step(sum(result.auxiliary.values()))
                if rule.lookahead or i + 1 < rule.steps:
                    result = self.loss(draw, answers)
        return (result if rule.lookahead else first), first.auxiliary

    def gradient(self, draw: NoisyDraw, residual: Tensor) -> Tensor:
        """g = grad_scale omega(t) R with NaN and infinities replaced and each element clipped."""
        if residual.shape != draw.clean.shape:
            raise ConfigError(f"the residual has shape {tuple(residual.shape)}, the latents {tuple(draw.clean.shape)}")
        omega = self.settings.grad_scale * self.weighting(draw.alpha_bar)
        gradient = torch.nan_to_num(omega * residual.detach().to(draw.clean.dtype))
        clip = self.settings.grad_clip
        return gradient if clip is None else gradient.clamp(-clip, clip)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with weights_only."""
        state: dict[str, Any] = {"generator": self.generator.get_state()}
        if self.optimizer is not None:
            state["optimizer"] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        if self.optimizer is not None and "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.recorded is not None:
            self.recorded.forget()
