"""The training loop: render, distill, regularize, step; and what a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import threestudio
import torch
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.utils import parse_optimizer
from torch import Tensor

from ..errors import ConfigError, DreamMappingError, suggest
from ..gaussians.optimizer import build_adam
from ..processes import average_over_processes, start_alike
from . import memory_report, run_report
from .capabilities import Densifies, OwnLearningRates, Resizes
from .guards import FiniteGuard, SilentTeacher
from .regularizers import REGULARIZERS
from .start import settled_start
from .step_log import StepLog


@threestudio.register("dreammapping-system")
class DreamMappingSystem(BaseLift3DSystem):
    """Text to 3D with any guidance that follows threestudio's contract and any geometry.

    Exactly one optimizer, so that Lightning's global step counts optimizer steps: the geometry's own groups, if it
    brings some, joined by those of `system.optimizer` (for a background network, say). Guidance that trains something
    itself (the operator of VDM) steps its own optimizer and keeps that optimizer's state in its state dict.
    """

    @dataclass
    class Config(BaseLift3DSystem.Config):
        report: bool = True
        """Write the model card and, after training, the exporter's files."""
        video_fps: Optional[int] = 30
        """Frames per second of the turntable's video. null: no video, and no need of ffmpeg."""

    cfg: Config
    report_type: ClassVar[type[run_report.RunReport]] = run_report.RunReport
    averages_gradients: ClassVar[bool] = True
    """Several processes need no wrapper round this system, which could not follow densification."""

    # ---- building ----

    def configure(self) -> None:
        self.check_prompt()
        with settled_start(self.cfg, self.resumed):
            super().configure()
        self.automatic_optimization = False
        # Before the optimizer and before a checkpoint loads: what the guidance trains is part of the run's state.
        self.read_prompt()
        self.guidance = threestudio.find(self.cfg.guidance_type)(self.cfg.guidance)
        self._report = self.report_type(self)
        self._silence, self._finite = SilentTeacher(), FiniteGuard()
        self._step_log = StepLog(self)

    def check_prompt(self) -> None:
        """Find a missing prompt before anything is built."""
        prompt = self.cfg.prompt_processor.get("prompt")
        if prompt is not None and not str(prompt).strip():
            raise ConfigError('system.prompt_processor.prompt is empty; say what to make, such as "a red striped mug"')

    def read_prompt(self) -> None:
        """From words to what the guidance wants of them."""
        self.prompt_processor = threestudio.find(self.cfg.prompt_processor_type)(self.cfg.prompt_processor)
        self.prompt_utils = self.prompt_processor()

    def configure_optimizers(self) -> dict[str, Any]:
        if self.cfg.scheduler is not None:
            raise ConfigError(
                "system.scheduler is not used here; give learning rates as schedules, such as geometry.position_lr"
            )
        if not isinstance(self.geometry, OwnLearningRates):
            return {"optimizer": parse_optimizer(self.cfg.optimizer, self)}
        return {"optimizer": build_adam(self.geometry.optimizer_groups() + self._configured_groups())}

    def _configured_groups(self) -> list[dict[str, Any]]:
        """Groups of `system.optimizer`, for parts whose learning rates the geometry does not govern."""
        settings = self.cfg.optimizer
        if not settings:
            return []
        if settings.get("name", "Adam") != "Adam" or not settings.get("params"):
            raise ConfigError(
                "system.optimizer adds groups to the geometry's Adam: its name must be Adam and it must list params, "
                "such as params: {background: {lr: 0.001}}"
            )
        return [group for group in parse_optimizer(settings, self).param_groups if group["params"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if isinstance(self.geometry, Resizes):
            self.geometry.prepare_for_state_dict(checkpoint["state_dict"], "geometry.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._settle_guards()  # nothing broken is kept
        super().on_save_checkpoint(checkpoint)
        self._report.progress()

    # ---- training ----

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self.renderer(**batch)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._report.start()
        memory_report.announce(self)

    def on_train_start(self) -> None:
        super().on_train_start()
        start_alike(self, "the system")

    def on_after_backward(self) -> None:
        super().on_after_backward()
        average_over_processes(parameter.grad for parameter in self.parameters())

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        step = self.true_global_step
        optimizer = self.optimizers()
        if isinstance(self.geometry, OwnLearningRates):
            self.geometry.update_learning_rates(optimizer.optimizer, step)

        self._step_log.clear()
        out = self(batch)
        loss = self.total_loss(out, batch)

        densifies = isinstance(self.geometry, Densifies) and "rasterization" in out
        if densifies:
            self.geometry.before_backward(step, out["rasterization"].info)
        self.manual_backward(loss)
        self._finite.check(step, loss, self.named_parameters())
        optimizer.step()
        if densifies:
            self._densify(step, out["rasterization"].info, optimizer.optimizer)
        optimizer.zero_grad(set_to_none=True)
        self._log_progress(loss, optimizer.optimizer)
        return {"loss": loss.detach()}

    def _densify(self, step: int, info: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        try:
            self.geometry.after_optimizer_step(step, info, optimizer)
        except DreamMappingError:
            self._settle_guards()  # gradients that were no numbers explain it better
            raise

    def _settle_guards(self) -> None:
        """Raise what the guards have not looked at yet."""
        self._finite.settle()
        self._silence.settle()

    def total_loss(self, out: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """What one step minimizes: the guidance's terms and the regularizers, weighted.

        `out` is what `forward` returned for `batch`.
        """
        guided = self.guide(out, batch)
        terms = {key.removeprefix("loss_"): value for key, value in guided.items() if key.startswith("loss_")}
        self._check_weights(terms)
        if "residual_norm" in guided:
            self._silence.watch(self.true_global_step, guided["residual_norm"])
        for key, value in guided.items():
            if not isinstance(value, Tensor) or value.numel() == 1:
                self._step_log.add(f"train/{key}", value)
        total = sum(value * self.C(self.cfg.loss[f"lambda_{name}"]) for name, value in terms.items())
        for key, weight in self.cfg.loss.items():
            name, weight = key.removeprefix("lambda_"), self.C(weight)
            self._step_log.add(f"train_params/{key}", weight)
            if name not in terms and weight != 0.0:
                value = REGULARIZERS.get(name)(out, self.geometry)
                self._step_log.add(f"train/loss_{name}", value)
                total = total + weight * value
        return total

    def guide(self, out: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the guidance says about one batch."""
        return self.guidance(out["comp_rgb"], self.prompt_utils, **batch, rgb_as_latents=False)

    def _check_weights(self, terms: Mapping[str, Tensor]) -> None:
        """Every distillation term has a weight, and every weight a term. The guidance's show at the first step only."""
        known = [f"lambda_{name}" for name in (*terms, *REGULARIZERS.names())]
        for key in self.cfg.loss:
            if key not in known:
                raise ConfigError(f"system.loss.{key} weighs nothing; {suggest(key, known)}")
        for name in terms:
            if f"lambda_{name}" not in self.cfg.loss:
                raise ConfigError(
                    f"the guidance {self.cfg.guidance_type} returns loss_{name}; "
                    f"give its weight as system.loss.lambda_{name}"
                )

    def _log_progress(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        if not self._step_log.wanted:
            return
        self._step_log.add("train/loss", loss.detach(), prog_bar=True)
        count = getattr(self.geometry, "count", None)
        if count is not None:
            self._step_log.add("train/gaussians", float(count), prog_bar=True)
        for index, group in enumerate(optimizer.param_groups):
            self._step_log.add(f"lr/{group.get('name', index)}", group["lr"])
        self._step_log.send()

    def on_fit_end(self) -> None:
        # Not on_train_end: that is skipped when a run is resumed that was killed between its last step and its export.
        super().on_fit_end()
        self._settle_guards()
        self._report.finish()

    # ---- looking ----

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        out = self(batch)
        name = f"it{self.true_global_step}-{int(batch['index'][0])}.png"
        self.save_image_grid(name, run_report.image_row(out), name="validation_step", step=self.true_global_step)

    def on_validation_epoch_end(self) -> None:
        pass

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        out = self(batch)
        self.save_rgb_image(f"it{self.true_global_step}-test/{int(batch['index'][0])}.png", out["comp_rgb"][0])

    def on_test_epoch_end(self) -> None:
        self._report.turntable()
