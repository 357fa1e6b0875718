"""A trainable copy of a Stable Diffusion U-Net: low-rank updates of its attention (LoRA) and a camera condition.

ProlificDreamer's construction (Wang et al. 2023): rank 4 on query, key, value and output of every attention; the
camera's 16 numbers pass a two-layer network whose output joins the embedding of t, as class labels do.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..distillation.trainable import CAMERA_NUMBERS, AdapterOptions
from ..errors import ConfigError, TeacherError
from .diffusers_teacher import PREDICTION_TYPES, no_autocast, weights_dtype
from .loading import load_denoiser, locate

if TYPE_CHECKING:
    from .diffusers_teacher import DiffusersTeacher

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class LoraPredictor:
    """See distillation.trainable.TrainablePredictor.

    Starts from the teacher itself, whose weights are then shared and stay untouched, or from another model with the
    same latents, texts and noise schedule. New parameters are float32, whatever the frozen weights are.
    """

    def __init__(self, teacher: DiffusersTeacher, options: AdapterOptions, generator: torch.Generator) -> None:
        if teacher.options.cpu_offload:
            raise ConfigError(
                "training a LoRA copy needs the weights to stay on the device: "
                "set system.guidance.enable_sequential_cpu_offload: false"
            )
        self.options, self.calls = teacher.options, teacher.calls
        self.unet, self.prediction_type = _base(teacher, options.model)
        _adapt(self.unet, options, generator)
        self.adapter = nn.ParameterDict(
            {_state_name(name): p for name, p in self.unet.named_parameters() if p.requires_grad}
        )
        if self.options.attention_slicing:
            self.unet.set_attention_slice("auto")
        self._run_unet = torch.compile(self.unet) if self.options.compile_unet else self.unet
        self.device: torch.device | None = None

    def predict(
        self, noisy: Tensor, t: Tensor, embedding: Tensor, camera: Tensor | None, *, differentiable: bool = False
    ) -> Tensor:
        """See distillation.trainable.TrainablePredictor."""
        self._follow(noisy)
        batch, dtype = len(noisy), weights_dtype(noisy.device, self.options)
        text = embedding.to(noisy.device, dtype).expand(batch, -1, -1)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), no_autocast(noisy):
            output = self._run_unet(
                noisy.to(dtype),
                t.to(noisy.device),
                encoder_hidden_states=text,
                class_labels=None if camera is None else camera.to(noisy.device, torch.float32),
                return_dict=False,
            )[0].float()
        self.calls.forwards += batch
        self.calls.count_backward(output, batch)
        return output

    def _follow(self, x: Tensor) -> None:
        """Move; the frozen weights' type follows the device as the teacher's does."""
        if x.device == self.device:
            return
        self.unet.to(x.device)
        dtype = weights_dtype(x.device, self.options)
        for parameter in self.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self.device = x.device


def _base(teacher: DiffusersTeacher, model: str | None) -> tuple[Any, str]:
    """(U-Net, prediction type) to put the updates on."""
    if model in (None, teacher.name) or locate(model).location == teacher.location:
        # The copy has modules of its own around the very same tensors: no second U-Net in memory, and nothing that
        # is changed here (updates, camera) can be seen in the teacher.
        tensors = [*teacher.unet.parameters(), *teacher.unet.buffers()]
        return copy.deepcopy(teacher.unet, {id(tensor): tensor for tensor in tensors}), teacher.prediction_type
    unet, schedule, prediction_type = load_denoiser(locate(model), teacher.dtype)
    here, there = teacher.schedule.alpha_bar, schedule.alpha_bar
    mine = (teacher.unet.config.in_channels, teacher.unet.config.cross_attention_dim)
    its = (unet.config.in_channels, unet.config.cross_attention_dim)
    problem = None
    if here.shape != there.shape or not torch.allclose(here, there, atol=1e-6):
        problem = "another noise schedule"
    elif mine != its:
        problem = f"{its[0]} latent channels and texts of width {its[1]}, the teacher {mine[0]} and {mine[1]}"
    elif prediction_type not in PREDICTION_TYPES:
        problem = f"predictions of the kind {prediction_type!r}"
    if problem:
        raise TeacherError(
            f"{model} cannot learn beside {teacher.name}: it has {problem}. Leave the name of the LoRA's model out (or "
            "give the teacher's) to train on the teacher's own weights"
        )
    return unet.eval().requires_grad_(False), prediction_type


def _adapt(unet: Any, options: AdapterOptions, generator: torch.Generator) -> None:
    """Put the trainable parts into `unet`, in place."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TeacherError("training a LoRA copy of the teacher needs the package peft: pip install peft") from None
    from diffusers.models.embeddings import TimestepEmbedding

    if options.camera and unet.class_embedding is not None:
        raise TeacherError("this U-Net has class labels of its own, so it cannot be told the camera that way")
    device = next(unet.parameters()).device
    alpha = options.rank * options.scale  # peft multiplies the updates by alpha / rank
    config = LoraConfig(r=options.rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):  # layers initialize from the global generator; leave it as it was
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        inject_adapter_in_model(config, unet)
        if options.camera:
            width = unet.time_embedding.linear_2.out_features
            unet.class_embedding = TimestepEmbedding(CAMERA_NUMBERS, width).to(device)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _state_name(name: str) -> str:
    """A name for state dicts, where dots separate modules."""
    return name.replace(".default.", ".").removesuffix(".weight").replace(".", "/")
