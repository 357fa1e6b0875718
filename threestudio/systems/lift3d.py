"""`BaseLift3DSystem`: a system made of geometry, material, background and renderer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from omegaconf import OmegaConf
from torch import Tensor

import threestudio
from threestudio.errors import CheckpointError, ConfigError
from threestudio.systems.system import BaseSystem
from threestudio.utils.config import load_config_file
from threestudio.utils.misc import cleanup, find_last_path, get_device, load_module_weights


class BaseLift3DSystem(BaseSystem):
    """Builds the four parts; guidance and prompt processor are built by each system where it needs them.

    Guidance with parameters or a saved state belongs into `configure`: what `on_fit_start` builds comes after the
    optimizer is made and the checkpoint's weights are loaded.
    """

    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = ""
        geometry: dict = field(default_factory=dict)
        geometry_convert_from: Optional[str] = None
        """Checkpoint whose geometry this one is made from; `LAST` in the path stands for the newest trial."""
        geometry_convert_inherit_texture: bool = False
        geometry_convert_override: dict = field(default_factory=dict)
        """Changes to the config of the geometry converted from."""
        material_type: str = ""
        material: dict = field(default_factory=dict)
        background_type: str = ""
        background: dict = field(default_factory=dict)
        renderer_type: str = ""
        renderer: dict = field(default_factory=dict)
        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)
        prompt_processor_type: str = ""
        prompt_processor: dict = field(default_factory=dict)
        exporter_type: str = "mesh-exporter"
        exporter: dict = field(default_factory=dict)

    cfg: Config

    def configure(self) -> None:
        convert = self.cfg.geometry_convert_from and not self.cfg.weights and not self.resumed
        if convert:
            self.geometry = self._converted_geometry()
        else:
            self.geometry = threestudio.find(self.cfg.geometry_type)(self.cfg.geometry)
        self.material = threestudio.find(self.cfg.material_type)(self.cfg.material)
        self.background = threestudio.find(self.cfg.background_type)(self.cfg.background)
        self.renderer = threestudio.find(self.cfg.renderer_type)(self.cfg.renderer, **self._parts())

    def _parts(self) -> dict[str, Any]:
        return {"geometry": self.geometry, "material": self.material, "background": self.background}

    def _converted_geometry(self) -> Any:
        """The geometry of another run's checkpoint, turned into this system's kind."""
        path = find_last_path(self.cfg.geometry_convert_from)
        config_path = Path(path).parent.parent / "configs" / "parsed.yaml"
        if not config_path.is_file():
            raise CheckpointError(
                f"geometry_convert_from needs the config of that run, but there is no {config_path}. "
                "Give a checkpoint inside a trial folder, such as outputs/name/trial/ckpts/last.ckpt."
            )
        system = load_config_file(config_path).get("system", {})
        if not system.get("geometry_type"):
            raise ConfigError(f"{config_path} names no system.geometry_type, so its geometry cannot be built.")
        previous_cfg = OmegaConf.merge(system.get("geometry", {}), self.cfg.geometry_convert_override)
        previous = threestudio.find(system.geometry_type)(previous_cfg)
        state, epoch, step = load_module_weights(path, module_name="geometry", map_location="cpu")
        try:
            previous.load_state_dict(state, strict=False)
        except RuntimeError as error:
            message = f"The geometry in {path} does not fit its own config {config_path}: {error}"
            raise CheckpointError(message) from error
        previous.do_update_step(epoch, step, on_load_weights=True)
        previous = previous.to(get_device())
        geometry = threestudio.find(self.cfg.geometry_type).create_from(
            previous, self.cfg.geometry, copy_net=self.cfg.geometry_convert_inherit_texture
        )
        del previous
        cleanup()
        return geometry

    # ---- where things go ----

    def on_fit_start(self) -> None:
        self._say_where("Images of validation")

    def on_test_end(self) -> None:
        self._say_where("Test results")

    def _say_where(self, what: str) -> None:
        if self._save_dir is not None:
            threestudio.info(f"{what}: {self.get_save_dir()}")
        else:
            threestudio.warn("No save folder is set, so saving will fail. Call set_save_dir(folder) on the system.")

    # ---- export ----

    def on_predict_start(self) -> None:
        exporter = threestudio.find(self.cfg.exporter_type)
        self.exporter = exporter(self.cfg.exporter, **self._parts())

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        if self.exporter.cfg.save_video:
            self.test_step(batch, batch_idx)

    def on_predict_epoch_end(self) -> None:
        if self.exporter.cfg.save_video:
            self.on_test_epoch_end()
        for output in self.exporter():
            save = getattr(self, f"save_{output.save_type}", None)
            if save is None:
                raise ValueError(
                    f"{type(self.exporter).__name__} returned the save type '{output.save_type}', "
                    f"for which {type(self).__name__} has no method save_{output.save_type}."
                )
            save(f"it{self.true_global_step}-export/{output.save_name}", **output.params)

    def on_predict_end(self) -> None:
        if self._save_dir is not None:
            threestudio.info(f"Exported to {self.get_save_dir()}")

    # ---- looking at the guidance ----

    def guidance_evaluation_save(self, comp_rgb: Tensor, guidance_eval_out: dict[str, Any]) -> None:
        """Save `it<step>-train.png`: the views beside what the guidance made of them.

        Args:
            comp_rgb: [B, H, W, C] in [0, 1]; the batch is stacked from top to bottom.
            guidance_eval_out: images [b, h, w, C] under `imgs_noisy`, `imgs_1step`, `imgs_1orig`, `imgs_final` (absent
                ones are left out), and `texts` to write on the result.
        """
        size = comp_rgb.shape[1:3]
        columns = [_stack(comp_rgb, size)]
        for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
            if name in guidance_eval_out:
                columns.append(_stack(guidance_eval_out[name], size))
        self.save_image_grid(
            f"it{self.true_global_step}-train.png",
            [{"type": "rgb", "img": column, "kwargs": {"data_format": "HWC"}} for column in columns],
            name="train_step",
            step=self.true_global_step,
            texts=guidance_eval_out.get("texts"),
        )


def _stack(images: Tensor, size: Sequence[int]) -> Tensor:
    """[B, h, w, C] resized to `size` (H, W) and stacked to [B * H, W, C]."""
    channels_first = images.detach().float().permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(channels_first, tuple(size), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 1)
