"""A Stable Diffusion model in diffusers' folder layout as a teacher: any size; epsilon, v or sample prediction.

Loads vae, unet and scheduler only; the prompts come as embeddings. Works with diffusers 0.19 and current releases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..distillation.draw import draw_noise
from ..distillation.noise_schedule import NoiseSchedule
from ..distillation.teacher import CallCount
from ..distillation.trainable import AdapterOptions
from ..errors import TeacherError
from .loading import Source, load_denoiser, load_part, locate

if TYPE_CHECKING:
    from .lora import LoraPredictor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass
class TeacherOptions:
    """How a teacher is held in memory."""

    half_precision: bool = True
    """float16 weights on CUDA; other devices use float32 (or bfloat16, below)."""
    bfloat16_on_cpu: bool = False
    """bfloat16 weights on a CPU: 1.6 times faster where it has AVX512-BF16 or AMX, slower where it has not."""
    channels_last: bool = True
    """Channels-last U-Net weights on CUDA. The VAE stays contiguous: its backward is slower in that layout."""
    attention_slicing: bool = False
    """Less memory, slower."""
    cpu_offload: bool = False
    """Weights stay in CPU memory and visit the GPU layer by layer (needs accelerate)."""
    compile_unet: bool = False
    """torch.compile the U-Net: a minute at the first step, then about twice as fast on a GPU."""


class DiffusersTeacher:
    """See protocol.Teacher. Frozen; moves to the device of what it is given."""

    def __init__(
        self,
        vae: Any,
        unet: Any,
        schedule: NoiseSchedule,
        prediction_type: str,
        source: Source,
        options: TeacherOptions,
    ) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise TeacherError(
                f"{source.name} predicts {prediction_type!r}; supported are {', '.join(PREDICTION_TYPES)}"
            )
        self.vae, self.unet = vae.eval().requires_grad_(False), unet.eval().requires_grad_(False)
        self.schedule, self.prediction_type, self.options = schedule, prediction_type, options
        self.name, self.location, self.fingerprint = source.name, source.location, source.fingerprint
        self.calls = CallCount()
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.latent_shape, self.image_size = _sizes(vae.config, unet.config)
        self.device: torch.device | None = None
        self.dtype = torch.float32
        self._run_unet = unet

    @classmethod
    def load(
        cls, name: str, options: TeacherOptions | None = None, device: torch.device | str = "cpu"
    ) -> DiffusersTeacher:
        """From a folder or hub name. Raises TeacherError (or the framework's own) if a part is missing or damaged."""
        from diffusers import AutoencoderKL

        options = options or TeacherOptions()
        source = locate(name)
        dtype = weights_dtype(torch.device(device), options)
        unet, schedule, prediction_type = load_denoiser(source, dtype)
        vae = load_part(AutoencoderKL, source, "vae", torch_dtype=dtype, use_safetensors=True)
        teacher = cls(vae, unet, schedule, prediction_type, source, options)
        return teacher.to(device)

    def to(self, device: torch.device | str) -> DiffusersTeacher:
        """Move; the weights' type follows the device (never float16 on a CPU)."""
        device = torch.device(device)
        self.dtype = weights_dtype(device, self.options)
        if self.options.cpu_offload and device.type != "cpu":
            self._offload(device)
        else:
            for part in (self.vae, self.unet):
                part.to(device) if part.dtype == self.dtype else part.to(device, self.dtype)
            if self.options.channels_last and device.type == "cuda":
                self.unet.to(memory_format=torch.channels_last)
        if self.options.attention_slicing:
            self.unet.set_attention_slice("auto")
        if device.type == "cuda":
            _use_plain_vae_attention(self.vae)
        if self.options.compile_unet:
            self._run_unet = torch.compile(self.unet)
        self.device = device
        return self

    def predict(
        self, noisy: Tensor, t: Tensor, embeddings: Mapping[str, Tensor], *, differentiable: bool = False
    ) -> dict[str, Tensor]:
        """See distillation.teacher.NoisePredictor."""
        self._follow(noisy)
        batch, names = len(noisy), list(embeddings)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), no_autocast(noisy):
            text = torch.cat([embeddings[n].to(noisy.device, self.dtype).expand(batch, -1, -1) for n in names])
            x, steps = noisy.repeat(len(names), 1, 1, 1), t.to(noisy.device).repeat(len(names))
            output = self._run_unet(x.to(self.dtype), steps, encoder_hidden_states=text, return_dict=False)[0].float()
            eps = self.schedule.eps_from_output(self.prediction_type, x.float(), output, steps)
        self.calls.forwards += len(x)
        self.calls.count_backward(eps, len(x))
        return dict(zip(names, eps.chunk(len(names))))

    def encode(self, rgb: Tensor, generator: torch.Generator) -> Tensor:
        """See protocol.Teacher. Images of another size are resized bilinearly, not antialiased (like threestudio)."""
        self._follow(rgb)
        if rgb.shape[-2:] != self.image_size:
            rgb = F.interpolate(rgb, self.image_size, mode="bilinear", align_corners=False)
        with no_autocast(rgb):
            # A permuted [B,H,W,3] image is channels-last in memory, which the encoder's backward is slow on.
            posterior = self.vae.encode((rgb * 2 - 1).to(self.dtype).contiguous()).latent_dist
            mean, std = posterior.mean.to(rgb.dtype), posterior.std.to(rgb.dtype)
        return (mean + std * draw_noise(mean, generator) - self.shift) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See protocol.Teacher."""
        self._follow(latents)
        with no_autocast(latents):
            image = self.vae.decode((latents / self.scaling_factor + self.shift).to(self.dtype)).sample
        return (image.to(latents.dtype) / 2 + 0.5).clamp(0, 1)

    def trainable_copy(self, options: AdapterOptions, generator: torch.Generator) -> LoraPredictor:
        """See distillation.trainable.Adaptable: a U-Net with LoRA. Needs the package peft."""
        from .lora import LoraPredictor

        return LoraPredictor(self, options, generator)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """The prompts' embeddings [N,L,E] float32, cut at the model's length; loads the text encoder for this one call."""
        from transformers import CLIPTextModel, CLIPTokenizer

        source = Source(self.name, self.location, self.fingerprint)
        tokenizer = load_part(CLIPTokenizer, source, "tokenizer")
        encoder = load_part(CLIPTextModel, source, "text_encoder", use_safetensors=True).eval().float()
        length = tokenizer.model_max_length
        tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        # One by one: in a batch an embedding would depend, in its last bits, on its neighbors.
        return torch.cat([encoder(row[None])[0] for row in tokens.input_ids])

    def embed_empty_prompt(self) -> Tensor:
        """The empty prompt's embedding [1,L,E]."""
        return self.embed_prompts([""])

    def _follow(self, x: Tensor) -> None:
        if x.device != self.device:
            self.to(x.device)

    def _offload(self, device: torch.device) -> None:
        try:
            from accelerate import cpu_offload
        except ImportError:
            raise TeacherError("cpu_offload needs the package accelerate: pip install accelerate") from None
        for part in (self.unet, self.vae):
            cpu_offload(part if part.dtype == self.dtype else part.to(self.dtype), device)


def weights_dtype(device: torch.device, options: TeacherOptions) -> torch.dtype:
    if device.type == "cuda":
        return torch.float16 if options.half_precision else torch.float32
    return torch.bfloat16 if device.type == "cpu" and options.bfloat16_on_cpu else torch.float32


def no_autocast(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _sizes(vae: Any, unet: Any) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """((C, h, w), (H, W)) from the U-Net's own latent size and the VAE's number of halvings."""
    size = unet.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    factor = 2 ** (len(vae.block_out_channels) - 1)
    return (unet.in_channels, height, width), (height * factor, width * factor)


def _use_plain_vae_attention(vae: Any) -> None:
    """The VAE has one head as wide as 512 channels, for which plain products beat the fused kernels' backward."""
    from diffusers.models.attention_processor import AttnProcessor

    if hasattr(vae, "set_attn_processor"):
        vae.set_attn_processor(AttnProcessor())
