"""The registered guidance: a teacher, a loss and their schedules behind threestudio's guidance call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import threestudio
import torch
from omegaconf import OmegaConf
from threestudio.utils.base import BaseModule
from threestudio.utils.misc import C
from torch import Tensor
from torch.nn import functional as F

from ..distillation import Distiller, DistillerSettings, LossContext, PromptedTeacher, build_loss, build_timesteps
from ..errors import ConfigError, TeacherError
from ..settings import parse_settings, to_plain
from ..teachers import DiffusersTeacher, TeacherOptions
from ..teachers.encoder import TinyEncoderOptions
from ..teachers.slices import check_slice, encode_in_slices
from .embeddings import FurtherTexts, NamedEmbeddings, Views, named_embeddings
from .preview import preview


@threestudio.register("dreammapping-guidance")
class DreamMappingGuidance(BaseModule):
    """Score distillation from a Stable Diffusion model, with any of the losses in `distillation`.

    The state holds what the loss trains, its optimizer and the random state, never the frozen teacher. Numbers marked
    "schedule" also take threestudio's step lists.
    """

    @dataclass
    class Config(BaseModule.Config):
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        """Teacher: a folder or hub name with unet, vae and scheduler."""
        loss: dict = field(default_factory=lambda: {"type": "vdm"})
        """`type` names the loss, the other keys are its own."""
        guidance_scale: Any = 7.5
        """Schedule. The paper's 7.5."""
        cfg_convention: str = "seed"
        """seed: e_c + s (e_c - e_u), the paper's eq. 4; usual: e_u + S (e_c - e_u), S = s + 1."""
        anchor: str = "empty"
        """e_u: the empty prompt (paper) or the negative one (threestudio, LucidDreamer)."""
        timesteps: dict = field(default_factory=lambda: {"type": "uniform"})
        """`type`: uniform, percent, luciddreamer, anneal, consistency; the other keys are its own."""
        weighting_strategy: str = "sds"
        """omega(t): sds, uniform, fantasia3d, snr, ..."""
        grad_scale: float = 1.0
        grad_reduction: str = "mean"
        """mean: the latents get g / B (threestudio); sum: g (LucidDreamer)."""
        grad_clip: Optional[Any] = None
        """Schedule. Elementwise bound on the latents' gradient."""
        offset_noise: float = 0.0
        view_dependent_prompting: bool = True
        seed: Optional[int] = None
        """Of noise, timesteps and the operator's start; None takes the run's."""
        max_items_eval: int = 4
        half_precision_weights: bool = True
        """float16 on CUDA."""
        bfloat16_on_cpu: bool = False
        enable_channels_last_format: bool = True
        enable_attention_slicing: bool = False
        enable_sequential_cpu_offload: bool = False
        encode_slice: int = 0
        """Views that the VAE encodes and differentiates at a time; 0: all. Same gradient; see docs/memory.md."""
        unet_slice: int = 0
        """Rows of the U-Net's batch (views times prompts) at a time; 0: all."""
        compile_unet: Any = False
        """false, true, or a mode of torch.compile: default, max-autotune-no-cudagraphs. Kept for later starts."""
        cuda_graphs: bool = True
        """On CUDA, launch the network, and what VDM trains, as recordings of their kernels (replay.py)."""
        fuse_projections: bool = True
        """On CUDA, fewer and larger matrix products in the U-Net's attention."""
        fast_encoder: bool = True
        """On CUDA in 16 bits, the VAE's encoder and its gradient by kernels of our own. Same latents, up to rounding."""
        tiny_encoder: dict = field(default_factory=dict)
        """`model` (madebyollin/taesd or another AutoencoderTiny made for the teacher) encodes in steps below
        `until_step`: an approximation. Off by default."""

    cfg: Config
    loss_key: ClassVar[str] = "loss_distillation"
    """Under which name the result holds the loss."""
    blocks: ClassVar[dict[str, str]] = {"loss": "system.guidance.loss", "timesteps": "system.guidance.timesteps"}
    """Where the config has the keys of these, for messages."""

    def plan(self) -> Config:
        """The settings everything here goes by. Classes with other config keys translate theirs."""
        return self.cfg

    def configure(self) -> None:
        """Load the teacher and build the loss; everything that can be wrong in the config is found here."""
        cfg = self._plan = self.plan()
        self._timesteps = build_timesteps(cfg.timesteps, self.blocks["timesteps"])
        settings = self._settings()
        check_slice(cfg.encode_slice, "system.guidance.encode_slice")
        self.teacher = DiffusersTeacher.load(cfg.pretrained_model_name_or_path, self._teacher_options(), self.device)
        seed = torch.initial_seed() if cfg.seed is None else cfg.seed
        generator = torch.Generator().manual_seed(seed)
        context = LossContext(self.teacher, self.teacher.latent_shape, generator)
        self.loss = build_loss(cfg.loss, context, self.blocks["loss"]).to(self.device)
        self.distiller = Distiller(self.loss, self.teacher, settings, generator, self._timesteps)
        self._texts = FurtherTexts(self.teacher.embed)
        self._step = 0
        self.update_step(0, 0)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Evaluate the schedules. May be called several times per step."""
        settings, cfg = self.distiller.settings, self._plan
        settings.guidance_scale = self._scheduled("guidance_scale", cfg.guidance_scale, epoch, global_step)
        if cfg.grad_clip is not None:
            settings.grad_clip = self._scheduled("grad_clip", cfg.grad_clip, epoch, global_step)
        where = self.blocks["timesteps"].removeprefix("system.guidance").lstrip(".")
        for name in self._timesteps.scheduled:
            if name in cfg.timesteps:
                key = f"{where}.{name}".lstrip(".")
                setattr(self._timesteps, name, self._scheduled(key, cfg.timesteps[name], epoch, global_step))
        self._step = self.teacher.step = global_step

    def forward(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """rgb [B,H,W,3] in [0,1] (or latents [B,H,W,C] with `rgb_as_latents`) -> the loss and scalars.

        `loss_distillation` carries the graph, as do the losses of parameters that the system's optimizer trains.
        `elevation`, `azimuth` in degrees, `camera_distances`, [B] each. Cameras in `kwargs` (c2w, mvp_mtx) reach the
        loss.
        """
        views = Views(elevation, azimuth, camera_distances)
        with torch.autocast(rgb.device.type, enabled=False):
            latents = self.latents(rgb.float(), rgb_as_latents)
            texts = self._embeddings(prompt_utils, views)
            context = {k: v for k, v in kwargs.items() if k in ("c2w", "mvp_mtx") and isinstance(v, Tensor)}
            result = self.distiller(
                latents, texts.by_name, step=self._step, perp_neg_weights=texts.perp_neg_weights, context=context
            )
            low, high = self._timesteps.bounds(self._step, self.teacher.schedule.steps)
            output = {self.loss_key: result.loss, **{f"loss_{k}": v for k, v in result.auxiliary.items()}}
            output |= {**result.diagnostics, "min_step": low, "max_step": high}
            if guidance_eval:
                count = min(self._plan.max_items_eval, len(rgb))
                output["eval"] = preview(self.teacher, self._prompted(texts.first(count)), result.draw, views, count)
        return output

    def latents(self, rgb: Tensor, rgb_as_latents: bool = False) -> Tensor:
        """[B,H,W,3] in [0,1] -> latents [B,C,h,w]; with `rgb_as_latents`, [B,H,W,C] is only resized."""
        channels, height, width = self.teacher.latent_shape
        expected = channels if rgb_as_latents else 3
        if rgb.ndim != 4 or rgb.shape[-1] != expected:
            raise ConfigError(f"guidance expects [B,H,W,{expected}] images, got {list(rgb.shape)}")
        images = rgb.permute(0, 3, 1, 2)
        if rgb_as_latents:
            return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        return encode_in_slices(self.teacher.encode, images, self.distiller.generator, self._plan.encode_slice)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [B,C,h,w] -> rgb [B,3,H,W] in [0,1], without graph."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.teacher.decode(latents.float())

    @property
    def trained_by_system(self) -> list[torch.nn.Parameter]:
        """Parameters that the system's optimizer must train, because the loss has no optimizer of its own for them.

        Systems of our core refuse to train without them.
        """
        return [] if self.loss.update is not None else list(self.loss.parameters())

    def get_extra_state(self) -> dict[str, Any]:
        """The auxiliary optimizer and the random state: tensors and plain values."""
        return self.distiller.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.distiller.load_state_dict(state)

    def _settings(self) -> DistillerSettings:
        cfg = self._plan
        values = {
            "cfg_convention": cfg.cfg_convention,
            "anchor": cfg.anchor,
            "weighting_strategy": cfg.weighting_strategy,
            "grad_scale": cfg.grad_scale,
            "grad_reduction": cfg.grad_reduction,
            "offset_noise": cfg.offset_noise,
            "cuda_graphs": cfg.cuda_graphs,
        }
        return parse_settings(DistillerSettings, values, "system.guidance")

    def _teacher_options(self) -> TeacherOptions:
        cfg = self._plan
        return TeacherOptions(
            half_precision=cfg.half_precision_weights,
            bfloat16_on_cpu=cfg.bfloat16_on_cpu,
            channels_last=cfg.enable_channels_last_format,
            attention_slicing=cfg.enable_attention_slicing,
            unet_slice=check_slice(cfg.unet_slice, "system.guidance.unet_slice"),
            cpu_offload=cfg.enable_sequential_cpu_offload,
            compile_unet=cfg.compile_unet,
            cuda_graphs=cfg.cuda_graphs,
            fuse_projections=cfg.fuse_projections,
            fast_encoder=cfg.fast_encoder,
            record_encoder=not cfg.encode_slice,
            tiny_encoder=parse_settings(TinyEncoderOptions, cfg.tiny_encoder, "system.guidance.tiny_encoder"),
        )

    def _embeddings(self, prompt_utils: Any, views: Views) -> NamedEmbeddings:
        view_dependent = self._plan.view_dependent_prompting
        wanted = (self._plan.anchor, *self.loss.embeddings)
        try:
            named = named_embeddings(
                prompt_utils,
                views,
                view_dependent=view_dependent,
                empty=(lambda: self._texts.embed([""], views.elevation.device)) if "empty" in wanted else None,
            )
            named.by_name.update(
                self._texts.of_views(self.loss.texts, prompt_utils, views, view_dependent=view_dependent)
            )
        except TeacherError as problem:
            raise ConfigError(self._about_texts(problem)) from problem
        return named

    def _about_texts(self, problem: TeacherError) -> str:
        """The message for a teacher that cannot embed texts, which the original threestudio's prompt processor needs
        for the empty prompt."""
        loss, extra = to_plain(self._plan.loss).get("type", "vdm"), tuple(self.loss.texts)
        if "empty" in self.loss.embeddings or extra:
            texts = ", ".join(extra) or "empty"
            return (
                f"{self.blocks['loss']}.type {loss} needs embeddings of its own ({texts}), which the teacher "
                f"cannot make ({problem}); the teacher's folder must hold tokenizer and text_encoder"
            )
        return (
            "system.guidance.anchor is 'empty', but the prompt processor gives no embedding of the empty "
            f"prompt and the teacher cannot make one ({problem}); set system.guidance.anchor: negative"
        )

    def _prompted(self, texts: NamedEmbeddings) -> PromptedTeacher:
        s = self.distiller.settings
        return PromptedTeacher(
            self.teacher,
            texts.by_name,
            guidance_scale=s.guidance_scale,
            convention=s.cfg_convention,
            anchor=s.anchor,
            perp_neg_weights=texts.perp_neg_weights,
        )

    @staticmethod
    def _scheduled(key: str, value: Any, epoch: int, step: int) -> float:
        if isinstance(value, str):
            raise ConfigError(f"system.guidance.{key} is {value!r}; it must be a number or a step schedule")
        return C(OmegaConf.create(value) if isinstance(value, list) else value, epoch, step)
