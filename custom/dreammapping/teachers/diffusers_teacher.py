"""A text-to-image model in diffusers' folder layout as a teacher: Stable Diffusion 1, 2, XL or 3, of any size.

Loads vae, network and scheduler only; the prompts come as embeddings. What differs between the models is in
denoisers.py. Stable Diffusion 1 and 2 also work with diffusers 0.19.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..distillation.draw import draw_noise
from ..distillation.teacher import CallCount
from ..distillation.trainable import AdapterOptions
from ..errors import TeacherError
from ..processes import Rows
from ..replay import Replayed
from .compilation import Compiled, compile_mode
from .denoisers import Denoiser, StableDiffusion, load_denoiser
from .encoder import TinyEncoder, TinyEncoderOptions, fast_encoder
from .loading import Source, load_part, locate
from .slices import in_slices

if TYPE_CHECKING:
    from .lora import LoraPredictor


@dataclass
class TeacherOptions:
    """How a teacher is held in memory."""

    half_precision: bool = True
    """float16 weights on CUDA; other devices use float32 (or bfloat16, below)."""
    bfloat16_on_cpu: bool = False
    """bfloat16 weights on a CPU: 1.6 times faster where it has AVX512-BF16 or AMX, slower where it has not."""
    channels_last: bool = True
    """Channels-last network weights on CUDA."""
    attention_slicing: bool = False
    """Less memory, slower."""
    unet_slice: int = 0
    """Rows of the network's batch at a time; 0: all."""
    cpu_offload: bool = False
    """Weights stay in CPU memory and visit the GPU layer by layer (needs accelerate)."""
    compile_unet: bool | str = False
    """torch.compile the network: false, true, or a mode (compilation.MODES). A minute or two at the first step, much
    less at later starts."""
    cuda_graphs: bool = True
    """On CUDA, record the frozen network's kernels and launch them as one (replay.py). Not with cpu_offload."""
    fuse_projections: bool = True
    """On CUDA, fewer and larger products in the U-Net's attention (attention.py). Not with cpu_offload or slicing."""
    fast_encoder: bool = True
    """On CUDA in 16 bits, the VAE's encoder by kernels of our own (encoder/). Not with cpu_offload."""
    record_encoder: bool = True
    """With cuda_graphs, the fast encoder too. Not for encode_in_slices, whose backward calls it anew: a recording would
    be made there, and keep a slice's graph for good."""
    tiny_encoder: TinyEncoderOptions = field(default_factory=TinyEncoderOptions)
    """Another encoder for the first steps."""


class DiffusersTeacher:
    """See protocol.Teacher. Frozen; moves to the device of what it is given."""

    def __init__(self, vae: Any, denoiser: Denoiser, source: Source, options: TeacherOptions) -> None:
        self.vae, self.network = vae.eval().requires_grad_(False), denoiser.network.eval().requires_grad_(False)
        self.denoiser, self.schedule, self.options = denoiser, denoiser.schedule, options
        self.name, self.location, self.fingerprint = source.name, source.location, source.fingerprint
        self.calls = CallCount()
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.latent_shape = denoiser.latent_shape
        self.image_size = tuple(size * denoiser.factor for size in self.latent_shape[1:])
        self.device: torch.device | None = None
        self.dtype = self.vae_dtype = torch.float32
        self._vae_layout = torch.contiguous_format
        self._compile_mode = compile_mode(options.compile_unet)
        self._replayed = Replayed(self._answer, f"the network of {source.name}")
        self._fast_encoder: Callable[[Tensor], Tensor] | None = None
        self._tiny_encoder: TinyEncoder | None = None
        self.step = 0
        """The run's step, which the guidance sets: options.tiny_encoder goes by it."""
        _check_fit(vae, denoiser, source)

    @classmethod
    def load(
        cls, name: str, options: TeacherOptions | None = None, device: torch.device | str = "cpu"
    ) -> DiffusersTeacher:
        """From a folder or hub name. Raises TeacherError (or the framework's own) if the model is of an unsupported
        kind, or a part is missing or damaged."""
        from diffusers import AutoencoderKL

        options = options or TeacherOptions()
        source = locate(name)
        dtype = weights_dtype(torch.device(device), options)
        denoiser = load_denoiser(source, dtype)
        vae = load_part(AutoencoderKL, source, "vae", torch_dtype=dtype, use_safetensors=True)
        teacher = cls(vae, denoiser, source, options).to(device)
        if options.tiny_encoder.wanted:
            teacher.adopt(TinyEncoder.load(options.tiny_encoder.model))
        return teacher

    def to(self, device: torch.device | str) -> DiffusersTeacher:
        """Move; the weights' type follows the device (never float16 on a CPU)."""
        device, options = torch.device(device), self.options
        self.dtype = weights_dtype(device, options)
        self.vae_dtype = self.dtype_of_vae(self.dtype)
        for part, dtype in ((self.network, self.dtype), (self.vae, self.vae_dtype)):
            if options.cpu_offload and device.type != "cpu":
                _offload(part if part.dtype == dtype else part.to(dtype), device)
            else:
                part.to(device) if part.dtype == dtype else part.to(device, dtype)
        if options.channels_last and device.type == "cuda" and not options.cpu_offload:
            self.network.to(memory_format=torch.channels_last)
        if options.attention_slicing:
            self.denoiser.slice_attention()
        # On CUDA diffusers' backward is slow on channels-last tensors, on a CPU a sixth faster.
        self._vae_layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        if not options.cpu_offload:
            self.vae.to(memory_format=self._vae_layout)
        if device.type == "cuda":
            use_plain_vae_attention(self.vae)
        whole = not (options.attention_slicing or options.cpu_offload)
        fused = self.denoiser.project is not None  # its weights have stayed where they were
        if whole and (fused or device.type == "cuda" and options.fuse_projections):
            self.denoiser.fuse_projections()
        if self._compile_mode is not None:
            self.denoiser.run = Compiled(self.network, self._compile_mode)
        self._replayed.forget()
        if options.fast_encoder and not options.cpu_offload:
            recorded = options.cuda_graphs and options.record_encoder
            self._fast_encoder = fast_encoder(self.vae, device, self.vae_dtype, recorded=recorded)
        if self._tiny_encoder is not None:
            self._tiny_encoder.to(device, self.dtype)
        self.device = device
        return self

    def dtype_of_vae(self, dtype: torch.dtype) -> torch.dtype:
        """The VAE's type beside a network in `dtype`."""
        overflows = self.denoiser.upcasts_vae and self.vae.config.get("force_upcast")
        return torch.float32 if overflows and dtype == torch.float16 else dtype

    @property
    def encodes_fast(self) -> bool:
        """Whether the VAE's encoder runs by kernels of our own."""
        return self._fast_encoder is not None

    @property
    def tiny_encoder(self) -> TinyEncoder | None:
        """What encodes in the first steps, if anything does."""
        return self._tiny_encoder

    def adopt(self, tiny: TinyEncoder) -> None:
        """Encode with `tiny` while `step` is below options.tiny_encoder.until_step. TeacherError if its latents are not
        the teacher's."""
        like = torch.empty(0, device=self.device)
        tiny.to(like.device, self.dtype).check(self.name, self._mean, self.image_size, like)
        self._tiny_encoder = tiny

    def predict(
        self, noisy: Tensor, t: Tensor, embeddings: Mapping[str, Tensor], *, differentiable: bool = False
    ) -> dict[str, Tensor]:
        """See distillation.teacher.NoisePredictor. Embeddings are packed, see denoisers.py."""
        self._follow(noisy)
        names = list(embeddings)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), no_autocast(noisy):
            texts = [embeddings[n].to(noisy.device) for n in names]
            recorded = self.options.cuda_graphs and not self.options.cpu_offload and not torch.is_grad_enabled()
            (eps,) = (self._replayed if recorded else self._answer)(noisy, t.to(noisy.device), *texts)
        self.calls.forwards += len(eps)
        self.calls.count_backward(eps, len(eps))
        return dict(zip(names, eps.chunk(len(names))))

    def _answer(self, noisy: Tensor, t: Tensor, *texts: Tensor) -> tuple[Tensor]:
        """(eps [KB,C,h,w],) for K texts [B or 1,L,E], one after the other; noisy [B,C,h,w], t [B]."""
        text = torch.cat([text.to(self.dtype).expand(len(noisy), -1, -1) for text in texts])
        x, steps = noisy.repeat(len(texts), 1, 1, 1).float(), t.repeat(len(texts))
        output = in_slices(self.denoiser, self.options.unet_slice, x, steps, text)
        return (self.schedule.eps_from_output(self.denoiser.prediction_type, x, output, steps),)

    def encode(self, rgb: Tensor, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
        """See protocol.Teacher. Images of another size are resized bilinearly, not antialiased (like threestudio)."""
        self._follow(rgb)
        if rgb.shape[-2:] != self.image_size:
            rgb = F.interpolate(rgb, self.image_size, mode="bilinear", align_corners=False)
        with no_autocast(rgb):
            if self._tiny_encoder is not None and self.step < self.options.tiny_encoder.until_step:
                return self._tiny_encoder(rgb * 2 - 1)
            posterior = self._posterior(rgb * 2 - 1)
            mean, std = posterior.mean.to(rgb.dtype), posterior.std.to(rgb.dtype)
        return (mean + std * draw_noise(mean, generator, rows=rows) - self.shift) * self.scaling_factor

    def _posterior(self, pixels: Tensor) -> Any:
        """diffusers' distribution of latents for images [B,3,H,W] in [-1,1]."""
        if self._fast_encoder is None:
            pixels = pixels.to(self.vae_dtype).contiguous(memory_format=self._vae_layout)
            return self.vae.encode(pixels).latent_dist
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return DiagonalGaussianDistribution(self._fast_encoder(pixels))

    def _mean(self, pixels: Tensor) -> Tensor:
        """Scaled latents without noise."""
        with no_autocast(pixels):
            return (self._posterior(pixels).mean.to(pixels.dtype) - self.shift) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See protocol.Teacher."""
        self._follow(latents)
        with no_autocast(latents):
            image = self.vae.decode((latents / self.scaling_factor + self.shift).to(self.vae_dtype)).sample
        return (image.to(latents.dtype) / 2 + 0.5).clamp(0, 1)

    def trainable_copy(self, options: AdapterOptions, generator: torch.Generator) -> LoraPredictor:
        """See distillation.trainable.Adaptable: the network with LoRA. Needs the package peft."""
        from .lora import LoraPredictor

        return LoraPredictor(self, options, generator)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings [N,L,E] of N texts, float32 on the CPU; loads the text encoder for this one call.

        Warns of texts that are too long for it and therefore cut. TeacherError for models that need several encoders.
        """
        from transformers import CLIPTextModel, CLIPTokenizer

        if not isinstance(self.denoiser, StableDiffusion):
            raise TeacherError(f"{self.name} has several text encoders, which only the prompt processor loads")
        source = Source(self.name, self.location, self.fingerprint)
        tokenizer = load_part(CLIPTokenizer, source, "tokenizer")
        encoder = load_part(CLIPTextModel, source, "text_encoder", use_safetensors=True).eval()
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        for text in texts:
            count = len(tokenizer(text, verbose=False).input_ids)
            if count > length:
                warnings.warn(f"the text encoder takes {length} tokens; of {text!r} it sees the first of {count}")
        # One at a time: in a batch, rounding would make an embedding depend on its neighbors.
        padded = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return torch.cat([encoder(tokenizer(text, **padded).input_ids)[0].float() for text in texts])

    def _follow(self, x: Tensor) -> None:
        if x.device != self.device:
            self.to(x.device)


def weights_dtype(device: torch.device, options: TeacherOptions) -> torch.dtype:
    if device.type == "cuda":
        return torch.float16 if options.half_precision else torch.float32
    return torch.bfloat16 if device.type == "cpu" and options.bfloat16_on_cpu else torch.float32


def no_autocast(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _check_fit(vae: Any, denoiser: Denoiser, source: Source) -> None:
    """TeacherError unless the network maps the VAE's latents, scaled by one number, to latents."""
    config = denoiser.network.config
    channels = {vae.config.latent_channels, config.in_channels, config.out_channels}
    if len(channels) > 1:
        raise TeacherError(
            f"the network of {source.name} reads {config.in_channels} channels and answers {config.out_channels}, its "
            f"VAE has {vae.config.latent_channels}; a model for inpainting or the like is not a teacher"
        )
    if vae.config.get("latents_mean") is not None:
        raise TeacherError(f"the VAE of {source.name} normalizes its latents by channel, which is not supported")


def _offload(part: Any, device: torch.device) -> None:
    try:
        from accelerate import cpu_offload
    except ImportError:
        raise TeacherError("cpu_offload needs the package accelerate: pip install accelerate") from None
    cpu_offload(part, device)


def use_plain_vae_attention(vae: Any) -> None:
    """The VAE has one head as wide as all its channels, for which plain products beat the fused kernels' backward."""
    from diffusers.models.attention_processor import AttnProcessor

    if hasattr(vae, "set_attn_processor"):
        vae.set_attn_processor(AttnProcessor())
