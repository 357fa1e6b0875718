"""DreamFusion (Poole et al. 2023): a radiance field, trained by score distillation sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import threestudio
from threestudio.systems.text_to_3d import TextTo3DSystem

_GUIDANCE = "guidance."


@threestudio.register("dreamfusion-system")
class DreamFusionSystem(TextTo3DSystem):
    """Guidance and the terms orient, sparsity, opaque and, if its weight is given, z_variance.

    The guidance is built when training begins, so that testing and exporting need no diffusion model. It therefore
    must not have parameters for the system's optimizer (as `stable-diffusion-vsd-guidance` has). What it keeps in a
    state dict, such as its random numbers, is resumed.
    """

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.build_guidance()
        if self.trainer.ckpt_path is not None and self._guidance_state:
            self.guidance.load_state_dict(self._guidance_state)

    def configure(self) -> None:
        super().configure()
        self._guidance_state: dict[str, Any] = {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if hasattr(self, "guidance"):
            return
        state = checkpoint["state_dict"]
        theirs = [key for key in state if key.startswith(_GUIDANCE)]
        # Kept until there is a guidance to give it to; left in place it would be unexpected.
        self._guidance_state = {key.removeprefix(_GUIDANCE): state.pop(key) for key in theirs}

    def regularization(self, out: Mapping[str, Any]) -> Tensor:
        total = super().regularization(out)
        return total + self.regularizer("z_variance", out) if "lambda_z_variance" in self.cfg.loss else total
