"""ProlificDreamer (Wang et al. 2023), coarse stage: a radiance field, trained by variational score distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.errors import ConfigError
from threestudio.systems.text_to_3d import TextTo3DSystem

STAGES = ("coarse", "geometry", "texture")


@threestudio.register("prolificdreamer-system")
class ProlificDreamerSystem(TextTo3DSystem):
    """Guidance and the terms orient, sparsity, opaque; z_variance if its weight is given; eikonal where there is an SDF.

    The guidance is built with the system: what it trains (a LoRA) belongs to `system.optimizer` and the checkpoint.
    So testing and exporting load its diffusion models, too.
    """

    @dataclass
    class Config(TextTo3DSystem.Config):
        stage: str = "coarse"
        """Only coarse is covered."""
        visualize_samples: bool = False
        """Save what teacher and LoRA would paint for each validation view, as `it<step>-<index>-sample.png`."""

    cfg: Config

    def configure(self) -> None:
        if self.cfg.stage not in STAGES:
            raise ConfigError(f"system.stage is '{self.cfg.stage}'; it must be one of {', '.join(STAGES)}.")
        if self.cfg.stage != "coarse":
            raise ConfigError(
                f"system.stage is '{self.cfg.stage}', but only the stage coarse is covered: it makes a radiance field, "
                "which --export turns into a textured mesh."
            )
        super().configure()
        self.build_guidance()
        if self.cfg.visualize_samples and not hasattr(self.guidance, "sample_lora"):
            raise ConfigError(f"system.visualize_samples needs a guidance with samples, not {self.cfg.guidance_type}.")

    def regularization(self, out: Mapping[str, Any]) -> Tensor:
        total = super().regularization(out)
        if "z_variance" in out and "lambda_z_variance" in self.cfg.loss:  # one of threestudio's configs has no weight
            total = total + self.regularizer("z_variance", out)
        if "sdf_grad" in out:
            total = total + self.regularizer("eikonal", out)
        if "inv_std" in out:
            self.log("train/inv_std", out["inv_std"])
        return total

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if not self.cfg.visualize_samples:
            return
        samples = (draw(self.prompt_utils, **batch) for draw in (self.guidance.sample, self.guidance.sample_lora))
        row = [{"type": "rgb", "img": image[0], "kwargs": {}} for image in samples]
        name = f"it{self.true_global_step}-{int(batch['index'][0])}-sample.png"
        self.save_image_grid(name, row, name="validation_step_samples", step=self.true_global_step)
