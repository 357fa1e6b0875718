"""What the text-to-3D systems share: one training step of guidance and regularizers, pictures, turntable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import threestudio
from threestudio.errors import ConfigError
from threestudio.systems import regularizers
from threestudio.systems.lift3d import BaseLift3DSystem


class TextTo3DSystem(BaseLift3DSystem):
    """Renders, asks the guidance, adds the regularizers of volume renderings. Subclasses build the guidance.

    Every `loss_<name>` of the guidance and every regularizer is weighted with `system.loss.lambda_<name>`, a number or
    a schedule.
    """

    def build_guidance(self) -> None:
        """`prompt_processor`, `prompt_utils` and `guidance` from their configs."""
        self.prompt_processor = threestudio.find(self.cfg.prompt_processor_type)(self.cfg.prompt_processor)
        self.prompt_utils = self.prompt_processor()
        self.guidance = threestudio.find(self.cfg.guidance_type)(self.cfg.guidance)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self.renderer(**batch)

    # ---- training ----

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        out = self(batch)
        loss = self.guided_loss(out, batch) + self.regularization(out)
        for name, value in self.cfg.loss.items():
            self.log(f"train_params/{name}", self.C(value))
        return {"loss": loss}

    def guided_loss(self, out: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """The weighted sum of what the guidance returns as `loss_<name>`; its other scalars are logged."""
        guided = self.guidance(out["comp_rgb"], self.prompt_utils, **batch, rgb_as_latents=False)
        total = out["comp_rgb"].new_zeros(())
        for name, value in guided.items():
            if not isinstance(value, (Tensor, int, float)) or isinstance(value, Tensor) and value.numel() > 1:
                continue
            self.log(f"train/{name}", value)
            if name.startswith("loss_"):
                total = total + value * self.loss_weight(name.removeprefix("loss_"))
        return total

    def regularization(self, out: Mapping[str, Any]) -> Tensor:
        """The weighted sum of the regularizers."""
        total = self.regularizer("sparsity", out) + self.regularizer("opaque", out)
        if self.loss_weight("orient") > 0:  # only then must there be normals
            total = total + self.regularizer("orient", out)
        return total

    def regularizer(self, name: str, out: Mapping[str, Any]) -> Tensor:
        """One of the terms in `regularizers`, logged as it is and weighted."""
        value = getattr(regularizers, name)(out)
        self.log(f"train/loss_{name}", value)
        return value * self.loss_weight(name)

    def loss_weight(self, name: str) -> float:
        """`system.loss.lambda_<name>` now.

        Raises:
            ConfigError: the config does not give it.
        """
        if f"lambda_{name}" not in self.cfg.loss:
            raise ConfigError(
                f"system.loss.lambda_{name} is missing: {self.cfg.guidance_type} with {type(self).__name__} has a term "
                f"loss_{name}. Give its weight; 0 switches it off."
            )
        return self.C(self.cfg.loss[f"lambda_{name}"])

    # ---- looking ----

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._save_views(self(batch), f"it{self.true_global_step}-{int(batch['index'][0])}.png", "validation_step")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._save_views(self(batch), f"it{self.true_global_step}-test/{int(batch['index'][0])}.png", "test_step")

    def on_test_epoch_end(self) -> None:
        folder = f"it{self.true_global_step}-test"
        self.save_img_sequence(
            folder, folder, r"(\d+)\.png", save_format="mp4", fps=30, name="test", step=self.true_global_step
        )

    def _save_views(self, out: Mapping[str, Any], filename: str, name: str) -> None:
        """Color, normals and opacity of the first view side by side, as far as they are there."""
        row: list[dict[str, Any]] = []
        for key in ("comp_rgb", "comp_normal"):
            if key in out:
                row.append({"type": "rgb", "img": out[key][0], "kwargs": {"data_format": "HWC", "data_range": (0, 1)}})
        if "opacity" in out:
            as_is = {"cmap": None, "data_range": (0, 1)}
            row.append({"type": "grayscale", "img": out["opacity"][0, :, :, 0], "kwargs": as_is})
        self.save_image_grid(filename, row, name=name, step=self.true_global_step)
