"""A trainable copy of a teacher's network: low-rank updates of its attention (LoRA) and a camera condition.

ProlificDreamer's construction (Wang et al. 2023): rank 4 on query, key, value and output of every attention; the
camera's 16 numbers pass a two-layer network whose output joins the embedding of t, as class labels do. In SD3's
transformer, the attentions are the projections of the image's tokens, and the pooled text joins the embedding of t too.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..distillation.trainable import AdapterOptions
from ..errors import ConfigError, TeacherError
from .compilation import compile_mode
from .denoisers import Denoiser, load_denoiser
from .diffusers_teacher import no_autocast, weights_dtype
from .loading import locate

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
        self.denoiser = _base(teacher, options.model)
        self.network, self.prediction_type = self.denoiser.network, self.denoiser.prediction_type
        _adapt(self.denoiser, options, generator)
        self.adapter = nn.ParameterDict(
            {_state_name(name): p for name, p in self.network.named_parameters() if p.requires_grad}
        )
        if self.options.attention_slicing:
            self.denoiser.slice_attention()
        if (mode := compile_mode(self.options.compile_unet)) is not None:
            self.denoiser.run = torch.compile(self.network, mode=mode)
        self.device: torch.device | None = None

    def predict(
        self, noisy: Tensor, t: Tensor, embedding: Tensor, camera: Tensor | None, *, differentiable: bool = False
    ) -> Tensor:
        """See distillation.trainable.TrainablePredictor."""
        self._follow(noisy)
        batch, dtype = len(noisy), weights_dtype(noisy.device, self.options)
        text = embedding.to(noisy.device, dtype).expand(batch, -1, -1)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), no_autocast(noisy):
            camera = None if camera is None else camera.to(noisy.device)
            output = self.denoiser(noisy.float(), t.to(noisy.device), text, camera)
        self.calls.forwards += batch
        self.calls.count_backward(output, batch)
        return output

    def _follow(self, x: Tensor) -> None:
        """Move; the frozen weights' type follows the device as the teacher's does."""
        if x.device == self.device:
            return
        self.network.to(x.device)
        dtype = weights_dtype(x.device, self.options)
        for parameter in self.network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self.device = x.device


def _base(teacher: DiffusersTeacher, model: str | None) -> Denoiser:
    """The network to put the updates on."""
    mine = teacher.denoiser
    if model in (None, teacher.name) or locate(model).location == teacher.location:
        # The copy has modules of its own around the very same tensors: no second network in memory, and nothing that
        # is changed here (updates, camera) can be seen in the teacher.
        tensors = [*mine.network.parameters(), *mine.network.buffers()]
        return mine.with_network(copy.deepcopy(mine.network, {id(tensor): tensor for tensor in tensors}))
    other = load_denoiser(locate(model), teacher.dtype)
    here, there = mine.schedule.alpha_bar, other.schedule.alpha_bar
    problem = None
    if type(mine) is not type(other):
        problem = f"a network of another kind ({type(other).__name__} instead of {type(mine).__name__})"
    elif here.shape != there.shape or not torch.allclose(here, there, atol=1e-6):
        problem = "another noise schedule"
    elif (mine.latent_shape[0], mine.text) != (other.latent_shape[0], other.text):
        problem = (
            f"{other.latent_shape[0]} latent channels and texts of width {other.text.width}, the teacher "
            f"{mine.latent_shape[0]} and {mine.text.width}"
        )
    if problem:
        raise TeacherError(
            f"{model} cannot learn beside {teacher.name}: it has {problem}. Leave the name of the LoRA's model out (or "
            "give the teacher's) to train on the teacher's own weights"
        )
    other.network.eval().requires_grad_(False)
    return other


def _adapt(denoiser: Denoiser, options: AdapterOptions, generator: torch.Generator) -> None:
    """Put the trainable parts into the network, in place."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TeacherError("training a LoRA copy of the teacher needs the package peft: pip install peft") from None
    network = denoiser.network
    device = next(network.parameters()).device
    alpha = options.rank * options.scale  # peft multiplies the updates by alpha / rank
    config = LoraConfig(r=options.rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):  # layers initialize from the global generator; leave it as it was
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        inject_adapter_in_model(config, network)
        if options.camera:
            denoiser.add_camera()
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device, torch.float32)


def _state_name(name: str) -> str:
    """A name for state dicts, where dots separate modules."""
    return name.replace(".default.", ".").removesuffix(".weight").replace(".", "/")
