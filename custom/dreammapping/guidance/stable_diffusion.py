"""threestudio's two Stable Diffusion guidances by their own names and keys, over the parts everything here shares.

The original threestudio registers classes of these names itself; there they are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, TypeVar

import threestudio
import torch
from threestudio.utils.base import BaseModule
from torch import Tensor

from ..distillation import CFGConvention
from ..errors import ConfigError
from ..settings import to_plain
from .distillation_guidance import DreamMappingGuidance
from .embeddings import Views, named_embeddings

T = TypeVar("T", bound=type)
CAMERA_DROPOUT = 0.1  # ProlificDreamer's, while the LoRA trains
SAMPLING_STEPS = 25


def register_if_free(name: str) -> Callable[[T], T]:
    """`threestudio.register`, except that a name somebody else already has stays theirs."""
    return (lambda cls: cls) if name in threestudio.__modules__ else threestudio.register(name)


class _StableDiffusionGuidance(DreamMappingGuidance):
    """What the two have in common: their shared keys and what these mean."""

    blocks: ClassVar[dict[str, str]] = {"loss": "system.guidance", "timesteps": "system.guidance"}
    uncovered: ClassVar[dict[str, str]] = {
        "use_img_loss": "the loss is that of the latents",
    }
    """Keys that must stay false, and what there is instead."""

    @dataclass
    class Config(BaseModule.Config):
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"
        """Teacher: a folder or hub name with unet, vae and scheduler; any kind of prediction."""
        enable_memory_efficient_attention: bool = False
        """Without effect: torch's own attention is memory efficient."""
        enable_sequential_cpu_offload: bool = False
        enable_attention_slicing: bool = False
        enable_channels_last_format: bool = False
        guidance_scale: Any = 100.0
        """Schedule."""
        grad_clip: Optional[Any] = None
        """Schedule. Elementwise bound on the latents' gradient; [0, 0.5, 2.0, 10000] is "score debiasing"."""
        half_precision_weights: bool = True
        """float16 on CUDA."""
        min_step_percent: Any = 0.02
        """Schedule. t ~ U{int(T min)..int(T max)}."""
        max_step_percent: Any = 0.98
        """Schedule."""
        sqrt_anneal: bool = False
        """HiFA: t = min + (max - min) (1 - sqrt(step / trainer_max_steps)), from the first value of max."""
        trainer_max_steps: int = 25000
        use_img_loss: bool = False
        """Not covered."""
        view_dependent_prompting: bool = True

    cfg: Config

    def shared(self, **own: Any) -> DreamMappingGuidance.Config:
        """The plan: what the shared keys say, and `own`."""
        cfg = to_plain(self.cfg)
        for key, instead in self.uncovered.items():
            if cfg[key]:
                raise ConfigError(
                    f"system.guidance.{key} is not covered by {type(self).__name__}: {instead}. Set it to false"
                )
        highest = cfg["max_step_percent"]
        if cfg["sqrt_anneal"] and isinstance(highest, list):
            highest = highest[0 if len(highest) == 3 else 1]
        timesteps = {
            "type": "percent",
            "min_step_percent": cfg["min_step_percent"],
            "max_step_percent": highest,
            "sqrt_anneal": cfg["sqrt_anneal"],
            "trainer_max_steps": cfg["trainer_max_steps"],
        }
        same = {
            key: cfg[key]
            for key in DreamMappingGuidance.Config.__dataclass_fields__
            if key in cfg and key not in own and key != "weights"
        }
        return DreamMappingGuidance.Config(timesteps=timesteps, anchor="negative", **same, **own)


@register_if_free("stable-diffusion-guidance")
class StableDiffusionGuidance(_StableDiffusionGuidance):
    """Score Distillation Sampling (DreamFusion) as threestudio's class of this name does it. Returns `loss_sds`.

    `guidance_scale` s means e_c + s (e_c - e_n), n the negative prompt: the scale most codes call s + 1. With Perp-Neg
    (`system.prompt_processor.use_perp_neg`) it means e_n + s (e_c - e_n + ...). Both as in threestudio.
    """

    loss_key: ClassVar[str] = "loss_sds"
    uncovered: ClassVar[dict[str, str]] = {
        **_StableDiffusionGuidance.uncovered,
        "use_sjc": "SDS is, with the weighting strategies sds, uniform and fantasia3d",
        "token_merging": "the U-Net runs on all tokens",
    }

    @dataclass
    class Config(_StableDiffusionGuidance.Config):
        use_sjc: bool = False
        """Not covered."""
        var_red: bool = True
        """Only use_sjc reads it."""
        weighting_strategy: str = "sds"
        """omega(t): sds 1 - alpha_bar, uniform 1, fantasia3d sqrt(alpha_bar) (1 - alpha_bar)."""
        token_merging: bool = False
        """Not covered."""
        token_merging_params: dict = field(default_factory=dict)
        max_items_eval: int = 4

    cfg: Config

    def plan(self) -> DreamMappingGuidance.Config:
        return self.shared(loss={"type": "sds"}, cfg_convention="seed")

    def forward(self, rgb: Tensor, prompt_utils: Any, *views: Tensor, **kwargs: Any) -> dict[str, Any]:
        """See DreamMappingGuidance.forward."""
        usual = prompt_utils.use_perp_neg
        self.distiller.settings.cfg_convention = CFGConvention.USUAL if usual else CFGConvention.SEED
        return super().forward(rgb, prompt_utils, *views, **kwargs)


@register_if_free("stable-diffusion-vsd-guidance")
class StableDiffusionVSDGuidance(_StableDiffusionGuidance):
    """Variational Score Distillation (ProlificDreamer) as threestudio's class of this name does it.

    Returns `loss_vsd` and `loss_lora`. The LoRA and the camera embedding are this module's parameters and are trained
    by the system's optimizer through `loss_lora` (`system.optimizer.params.guidance: {lr: 0.0001}`). A system of our
    core refuses to train without that entry.

    With `half_precision_weights` on CUDA the frozen weights are float16, the trained ones float32, and `loss_lora` is
    not scaled: as in threestudio, where only `trainer.precision: 16-mixed` scales the whole loss.

    `guidance_scale` S means e_n + S (e_c - e_n), n the negative prompt: the usual definition. Unlike in threestudio,
    Perp-Neg is not ignored, and with `guidance_scale_lora` 1 the LoRA is asked once instead of twice.
    """

    loss_key: ClassVar[str] = "loss_vsd"

    @dataclass
    class Config(_StableDiffusionGuidance.Config):
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        pretrained_model_name_or_path_lora: str = "stabilityai/stable-diffusion-2-1"
        """Model the LoRA starts from; the teacher's own name: one set of weights serves both."""
        guidance_scale: Any = 7.5
        """Schedule."""
        guidance_scale_lora: float = 1.0
        """Guidance of the LoRA towards the camera, the usual definition."""
        lora_cfg_training: bool = True
        """Hide the camera from a tenth of the LoRA's training images."""
        lora_n_timestamp_samples: int = 1
        """Steps t' per image in loss_lora."""
        camera_condition_type: str = "extrinsics"
        """extrinsics (camera to world) or mvp (world to clip)."""

    cfg: Config

    def plan(self) -> DreamMappingGuidance.Config:
        cfg = self.cfg
        if cfg.camera_condition_type not in ("extrinsics", "mvp"):
            raise ConfigError(
                f"system.guidance.camera_condition_type is {cfg.camera_condition_type!r}; "
                "it must be 'extrinsics' or 'mvp'"
            )
        loss = {
            "type": "vsd",
            "lora_model": cfg.pretrained_model_name_or_path_lora,
            "lora_guidance_scale": cfg.guidance_scale_lora,
            "lora_timesteps": cfg.lora_n_timestamp_samples,
            "camera_condition": cfg.camera_condition_type,
            "camera_dropout": CAMERA_DROPOUT if cfg.lora_cfg_training else 0.0,
            "lora_opt": None,
        }
        return self.shared(loss=loss, cfg_convention="usual")

    @torch.no_grad()
    def sample(
        self,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        seed: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """What the teacher would paint for these views [B,H,W,3] in [0,1]: 25 DDIM steps (threestudio: DPM-Solver)."""
        views = Views(elevation, azimuth, camera_distances)
        view_dependent = self.cfg.view_dependent_prompting
        texts = named_embeddings(prompt_utils, views, view_dependent=view_dependent, empty=None)
        prompted = self._prompted(texts)
        return self._paint(lambda x, t: prompted.guided(x, t).guided, elevation, seed)

    @torch.no_grad()
    def sample_lora(
        self,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        seed: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """The same from the LoRA: what it has learned of the renderings. Needs `c2w` or `mvp_mtx` [B,4,4]."""
        text, camera = prompt_utils.text_embeddings, self.loss.score.camera(kwargs, elevation)
        return self._paint(lambda x, t: self.loss.score.eps(x, t, text, camera), elevation, seed)

    def _paint(self, eps: Callable[[Tensor, Tensor], Tensor], like: Tensor, seed: int) -> Tensor:
        schedule = self.teacher.schedule
        shape = (len(like), *self.teacher.latent_shape)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like.device)
        stride = max(schedule.steps // SAMPLING_STEPS, 1)
        for now in range(schedule.steps - 1, -1, -stride):
            t = torch.full((len(like),), now, device=like.device)
            latents = schedule.ddim_step(latents, eps(latents, t), t, t - stride)
        return self.teacher.decode(latents).permute(0, 2, 3, 1)
