"""Text to 2D: the system of 3D with pictures in the place of views, and several prompts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import threestudio
import torch

from ..errors import ConfigError
from ..random_streams import stream_generator
from .image_report import ImageReport
from .prompts import embed, read_prompts
from .system import DreamMappingSystem

CHUNK = 4  # pictures decoded at once: a view batch of the paper


@threestudio.register("dreammapping-image-system")
class DreamMappingImageSystem(DreamMappingSystem):
    """Optimizes `dreammapping-image` pictures with any guidance that takes latents (or pixels) and decodes them.

    Everything else is DreamMappingSystem's: guidance, loss weights, optimizer, checkpoints. There are no views.
    """

    @dataclass
    class Config(DreamMappingSystem.Config):
        prompts: Any = None
        """Several prompts instead of prompt_processor.prompt: a list, or a file (.json, or one per line)."""
        prompt_list: Optional[str] = None
        """Which list of a .json file that holds several by name."""
        video_fps: Optional[int] = 6
        """Previews per second of the video of the training. null: none."""

    cfg: Config
    report_type = ImageReport

    # ---- building ----

    def configure(self) -> None:
        super().configure()
        if not hasattr(self.guidance, "teacher"):
            raise ConfigError(
                f"pictures take their size from a teacher, which {self.cfg.guidance_type} does not show; "
                "choose system.guidance_type=dreammapping-guidance"
            )
        self.geometry.start(self.guidance.teacher, len(self.prompts))

    def check_prompt(self) -> None:
        cfg = self.cfg
        if cfg.prompts is None:
            super().check_prompt()
        if cfg.prompt_processor.get("use_perp_neg"):
            raise ConfigError(
                "Perp-Neg is about views, which pictures do not have: set prompt_processor.use_perp_neg=false"
            )
        given = [cfg.prompt_processor.get("prompt")] if cfg.prompts is None else cfg.prompts
        self.prompts = read_prompts(given, cfg.prompt_list)

    def read_prompt(self) -> None:
        if not hasattr(self.geometry, "pictures"):
            raise ConfigError(
                f"dreammapping-image-system trains pictures; the geometry is {type(self.geometry).__name__}. "
                "Choose system.geometry_type=dreammapping-image, or system_type=dreammapping-system for 3D"
            )

        def build(prompt: str) -> Any:
            return threestudio.find(self.cfg.prompt_processor_type)({**self.cfg.prompt_processor, "prompt": prompt})

        self._texts, self.prompts = embed(build, self.prompts, self.geometry.cfg.particles)
        self._count = len(self._texts.text_embeddings)

    # ---- training ----

    def preprocess_data(self, batch: dict[str, Any], stage: str) -> None:
        """Decide which pictures take part; the camera, the same for all, is repeated for each."""
        if stage != "train":
            return
        batch["index"] = self.choose(batch["batch_size"], self.true_global_step)
        for key, value in batch.items():
            if isinstance(value, torch.Tensor):
                batch[key] = value.expand(len(batch["index"]), *value.shape[1:])

    def choose(self, batch_size: int | None, step: int) -> list[int]:
        """The pictures of a step, a function of the run's seed and the step alone: every picture as often as every
        other, except for a random rest."""
        if batch_size is None:
            return list(range(self._count))
        generator, index = stream_generator("batches", step), []
        while len(index) < batch_size:
            index += torch.randperm(self._count, generator=generator).tolist()
        return index[:batch_size]

    def guide(self, out: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        latent = "latents" in out
        images = out["latents" if latent else "comp_rgb"]
        return self.guidance(images, self._texts.of(batch["index"]), **batch, rgb_as_latents=latent)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.true_global_step == 0:
            self._report.preview(self.pictures())

    # ---- looking ----

    @torch.no_grad()
    def pictures(self) -> list[np.ndarray]:
        """All pictures, [H,W,3] uint8 each."""
        found = []
        for first in range(0, self._count, CHUNK):
            out = self.renderer(index=range(first, min(first + CHUNK, self._count)))
            if "latents" in out:
                rgb = self.guidance.decode_latents(out["latents"].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            else:
                rgb = out["comp_rgb"]
            found += list((rgb.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        return found

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._report.preview(self.pictures())

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._report.conclude(self.pictures())

    def on_test_epoch_end(self) -> None:
        pass

    # ---- export: the pictures alone ----

    def on_predict_start(self) -> None:
        pass

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._report.write_pictures(self.pictures())

    def on_predict_epoch_end(self) -> None:
        pass
