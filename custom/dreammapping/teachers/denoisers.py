"""The networks of the supported pipelines, and how each pipeline calls its own.

A network is told the prompt by token embeddings [B,L,E], and some also by one pooled vector [B,P]. Everything outside
this file sees a single tensor, the packed embedding [B,L+k,E] with k = ceil(P / E): the tokens, then the pooled vector
cut into k rows and filled up with zeros. So prompts are cached, chosen by view, interpolated and learned as one thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..distillation.noise_schedule import NoiseSchedule
from ..distillation.trainable import CAMERA_NUMBERS
from ..errors import ConfigError, TeacherError
from .attention import TextProjection, fuse_projections
from .loading import Source, load_config, load_part, pipeline_class

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""Of a U-Net."""


@dataclass(frozen=True)
class TextShape:
    """How wide a network's texts are."""

    width: int
    """E."""
    pooled: int = 0
    """P; 0: there is no pooled vector."""

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B,L,E] and pooled vector [B,P] of a packed embedding [B,L+k,E]; TeacherError if it is another's."""
        rows = -(-self.pooled // self.width)
        if packed.shape[-1] != self.width or packed.shape[-2] <= rows:
            raise TeacherError(
                f"this teacher reads prompts of width {self.width}{f' with {rows} pooled row(s)' if rows else ''}, but "
                f"the prompt processor gives embeddings of shape {list(packed.shape[-2:])}. Give both the same model: "
                "system.prompt_processor.pretrained_model_name_or_path (the original threestudio's prompt processor "
                "encodes for Stable Diffusion 1 and 2 only)"
            )
        tokens, rest = packed.split([packed.shape[1] - rows, rows], dim=1)
        return tokens, rest.flatten(1)[:, : self.pooled]


@dataclass(eq=False)
class Denoiser:
    """A network with its noise schedule and the kind of its answers. Subclasses know how it is called."""

    network: Any
    schedule: NoiseSchedule
    prediction_type: str
    factor: int
    """Pixels per latent pixel."""
    run: Any = field(init=False)
    """The network, or its compiled form."""
    project: TextProjection | None = field(init=False, default=None)
    """What turns tokens into what a network with fused projections reads in their place."""

    part: ClassVar[str] = "unet"
    """The network's folder."""
    upcasts_vae: ClassVar[bool] = False
    """Whether the pipeline heeds the VAE's `force_upcast`, which says that float16 overflows in it."""

    def __post_init__(self) -> None:
        self.run = self.network

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) the network was trained on."""
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.network.config.in_channels, height, width

    @property
    def text(self) -> TextShape:
        return TextShape(self.network.config.cross_attention_dim)

    def __call__(self, noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None) -> Tensor:
        """The network's answer [B,C,h,w] float32, in its own kind of prediction.

        noisy [B,C,h,w] and t [B] of the schedule; text [B,L+k,E] packed, in the network's dtype; camera [B,16] if
        there is a camera condition.
        """
        tokens, pooled = self.text.unpack(text)
        return self.run(
            noisy.to(text.dtype),
            t,
            encoder_hidden_states=tokens if self.project is None else self.project(tokens),
            class_labels=None if camera is None else camera.float(),
            return_dict=False,
            **self.conditions(noisy, pooled),
        )[0].float()

    def conditions(self, noisy: Tensor, pooled: Tensor) -> dict[str, Any]:
        """What else the U-Net is told."""
        return {}

    def add_camera(self) -> None:
        """Let the network know a camera, beside t, by a fresh two-layer network."""
        if self.network.class_embedding is not None:
            raise TeacherError("this U-Net has class labels of its own, so it cannot be told the camera that way")
        width = self.network.time_embedding.linear_2.out_features
        self.network.class_embedding = _camera_embedding(width)

    def fuse_projections(self) -> None:
        """Fewer and larger products in the attention (attention.py), where the network has the usual kind of it. To be
        repeated after each move of the network."""
        self.project = fuse_projections(self.network)

    def slice_attention(self) -> None:
        """Less memory, slower."""
        if not hasattr(self.network, "set_attention_slice"):
            raise ConfigError(
                f"{type(self.network).__name__} has no attention slicing: "
                "set system.guidance.enable_attention_slicing: false"
            )
        self.network.set_attention_slice("auto")

    def with_network(self, network: Any) -> Denoiser:
        """The same around another network of this kind."""
        return replace(self, network=network)

    @classmethod
    def load(cls, source: Source, dtype: torch.dtype) -> Denoiser:
        """The network and its schedule; TeacherError for a kind that cannot be used."""
        from diffusers import DDIMScheduler, UNet2DConditionModel

        config = load_config(DDIMScheduler, source, "scheduler")
        if "beta_schedule" not in config:
            raise TeacherError(
                f"{source.name} has the scheduler {config.get('_class_name')}, which names no beta schedule; its kind "
                "of noise is not supported"
            )
        scheduler = load_part(DDIMScheduler, source, "scheduler")
        prediction_type = scheduler.config.prediction_type
        if prediction_type not in PREDICTION_TYPES:
            raise TeacherError(
                f"{source.name} predicts {prediction_type!r}; supported are {', '.join(PREDICTION_TYPES)}"
            )
        network = load_part(UNet2DConditionModel, source, cls.part, torch_dtype=dtype, use_safetensors=True)
        cls.check(network.config, source)
        return cls(network, NoiseSchedule(scheduler.alphas_cumprod), prediction_type, vae_factor(source))

    @classmethod
    def check(cls, config: Any, source: Source) -> None:
        """TeacherError if the pipeline would tell this network more than we do."""
        if config.get("time_cond_proj_dim") is not None:
            raise TeacherError(f"{source.name} has its guidance distilled into the network; take the model it is of")
        if config.get("addition_embed_type") is not None:
            raise TeacherError(
                f"the U-Net of {source.name} asks for {config['addition_embed_type']!r} conditions, which its "
                "model_index.json does not speak of"
            )


class StableDiffusion(Denoiser):
    """Stable Diffusion 1 and 2: one text encoder, no pooled vector."""


class StableDiffusionXL(Denoiser):
    """SDXL (Podell et al. 2023): a pooled vector, and the image's size and crop."""

    upcasts_vae = True

    @property
    def text(self) -> TextShape:
        config = self.network.config
        ids = self.time_ids(1, 1).shape[1] * config.addition_time_embed_dim
        return TextShape(config.cross_attention_dim, config.projection_class_embeddings_input_dim - ids)

    def conditions(self, noisy: Tensor, pooled: Tensor) -> dict[str, Any]:
        ids = self.time_ids(*noisy.shape[-2:])[0].tolist()
        # Made where they are needed: a copy from the host would wait, and cannot be recorded.
        columns = [pooled.new_full((len(noisy), 1), number) for number in ids]
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.cat(columns, 1)}}

    def time_ids(self, height: int, width: int) -> Tensor:
        """[1,6] in pixels: original size, corner of the crop, size. The image is whole and of the latents' size."""
        size = [height * self.factor, width * self.factor]
        return torch.tensor([[*size, 0, 0, *size]])

    @classmethod
    def check(cls, config: Any, source: Source) -> None:
        if config.get("addition_embed_type") != "text_time":
            raise TeacherError(
                f"the U-Net of {source.name} has no text_time conditions, as its model_index.json promises; it is no "
                "SDXL U-Net"
            )
        super().check({**config, "addition_embed_type": None}, source)


class StableDiffusion3(Denoiser):
    """Stable Diffusion 3 and 3.5 (Esser et al. 2024): flow matching with a transformer; see noise_schedule.py.

    Step t has the noise share s_t of the scheduler's shifted table. The last one, 1, is lowered half a step: at pure
    noise eps says nothing about the image.
    """

    part = "transformer"
    upcasts_vae = True

    @property
    def text(self) -> TextShape:
        return TextShape(self.network.config.joint_attention_dim, self.network.config.pooled_projection_dim)

    def __call__(self, noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None) -> Tensor:
        patch = self.network.config.patch_size
        if noisy.shape[-2] % patch or noisy.shape[-1] % patch:
            raise TeacherError(f"latents of {tuple(noisy.shape[-2:])} do not divide into patches of {patch} x {patch}")
        tokens, pooled = self.text.unpack(text)
        z, s = self.schedule.flow_state(noisy, t)
        return self.run(
            hidden_states=z.to(text.dtype),
            timestep=s.flatten() * self.schedule.steps,
            encoder_hidden_states=tokens,
            pooled_projections=pooled if camera is None else torch.cat([pooled.float(), camera.float()], 1),
            return_dict=False,
        )[0].float()

    def add_camera(self) -> None:
        inner, config = self.network.time_text_embed, self.network.config
        width = config.num_attention_heads * config.attention_head_dim
        self.network.time_text_embed = _CameraBesideText(inner, config.pooled_projection_dim, width)

    @classmethod
    def load(cls, source: Source, dtype: torch.dtype) -> Denoiser:
        from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

        config = load_config(FlowMatchEulerDiscreteScheduler, source, "scheduler")
        name = config.get("_class_name")
        if name != FlowMatchEulerDiscreteScheduler.__name__ or config.get("use_dynamic_shifting"):
            dynamic = " with use_dynamic_shifting" if config.get("use_dynamic_shifting") else ""
            raise TeacherError(
                f"{source.name} has the scheduler {name}{dynamic}; an SD3 teacher needs a "
                "FlowMatchEulerDiscreteScheduler with a fixed shift"
            )
        scheduler = load_part(FlowMatchEulerDiscreteScheduler, source, "scheduler")
        s = scheduler.sigmas.double().flip(0)
        if s[-1] == 1:
            s[-1] = (s[-1] + s[-2]) / 2
        network = load_part(SD3Transformer2DModel, source, cls.part, torch_dtype=dtype, use_safetensors=True)
        return cls(network, NoiseSchedule.from_flow(s), "flow_prediction", vae_factor(source))


class _CameraBesideText(nn.Module):
    """A transformer's embedding of t and pooled text, plus that of a camera which comes appended to the text."""

    def __init__(self, inner: nn.Module, pooled: int, width: int) -> None:
        super().__init__()
        self.inner, self.camera, self.pooled = inner, _camera_embedding(width), pooled

    def forward(self, timestep: Tensor, text_and_camera: Tensor) -> Tensor:
        text, camera = text_and_camera.split([self.pooled, CAMERA_NUMBERS], 1)
        known = self.inner(timestep, text.to(next(self.inner.parameters()).dtype))
        return known + self.camera(camera).to(known.dtype)


def _camera_embedding(width: int) -> nn.Module:
    from diffusers.models.embeddings import TimestepEmbedding

    return TimestepEmbedding(CAMERA_NUMBERS, width)


PIPELINES: dict[str, type[Denoiser]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
}
"""By the class that model_index.json names."""


def load_denoiser(source: Source, dtype: torch.dtype) -> Denoiser:
    """The network of a model; which kind it is, the model's own files say. TeacherError for another pipeline's."""
    name = pipeline_class(source)
    if name not in PIPELINES:
        raise TeacherError(
            f"{source.name} is a {name}, which is not supported as a teacher; supported are {', '.join(PIPELINES)} "
            "(the _class_name in model_index.json)"
        )
    return PIPELINES[name].load(source, dtype)


def vae_factor(source: Source) -> int:
    """Pixels per latent pixel: the VAE halves once between two levels."""
    from diffusers import AutoencoderKL

    return 2 ** (len(load_config(AutoencoderKL, source, "vae")["block_out_channels"]) - 1)
