"""Shap-E by the ShapEPipeline of diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ..mesh import ColoredMesh
from .backends import BACKENDS, Backend, Request, colored_mesh, empty_mesh_error
from .weights import find_weights, weight_files


class _NoFaces(Exception):
    """The surface has no triangle."""


@BACKENDS.register("diffusers")
class DiffusersBackend(Backend):
    """A folder or a hub name, in the layout of openai/shap-e."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.weights = find_weights(request.settings.model)

    @property
    def identity(self) -> dict[str, str]:
        return {"weights": self.weights.fingerprint, "diffusers": version("diffusers")}

    def generate(self) -> ColoredMesh:
        request = self.request
        pipeline = load_pipeline(self.weights.folder, request.settings.model, request.device, request.half)
        latent = sample_latent(pipeline, request)
        try:
            return decode(pipeline.shap_e_renderer, latent, request.settings.grid_size)
        except _NoFaces:
            raise empty_mesh_error(request, latent) from None


def load_pipeline(folder: Path, name: str, device: torch.device, half: bool) -> Any:
    """The pipeline on `device`: the renderer in float32, since float16 gets signs near the surface wrong, the rest in
    float16 if `half`. Raises ConfigError that names a part which cannot be read."""
    from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEPipeline
    from diffusers.pipelines.shap_e import ShapERenderer
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    low = torch.float16 if half else torch.float32
    networks = {
        "prior": (PriorTransformer, {"torch_dtype": low}),
        "text_encoder": (CLIPTextModelWithProjection, {}),  # the option's name depends on the version of transformers
        "shap_e_renderer": (ShapERenderer, {"torch_dtype": torch.float32}),
    }
    parts = {}
    for part, (cls, options) in networks.items():
        with _problems_named(name, folder, part):
            model = cls.from_pretrained(str(folder), subfolder=part, local_files_only=True, **_weight_options(folder / part), **options)
        parts[part] = model.to(device).eval().requires_grad_(False)
    parts["text_encoder"].to(low)
    for part, cls in (("tokenizer", CLIPTokenizer), ("scheduler", HeunDiscreteScheduler)):
        with _problems_named(name, folder, part):
            parts[part] = cls.from_pretrained(str(folder), subfolder=part, local_files_only=True)
    pipeline = ShapEPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_latent(pipeline: Any, request: Request) -> Tensor:
    """A latent [1, rows, width]. Its noise is drawn on the CPU in float32, so that every device and precision starts
    from the same."""
    prior = pipeline.prior
    shape = (1, prior.config.num_embeddings * prior.config.embedding_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(request.seed))
    return pipeline(
        request.prompt,
        num_inference_steps=request.settings.steps,
        guidance_scale=request.settings.guidance_scale,
        latents=noise.to(device=request.device, dtype=prior.dtype),
        output_type="latent",
    ).images


def decode(renderer: Any, latent: Tensor, grid_size: int) -> ColoredMesh:
    """The mesh of one latent. Raises _NoFaces."""

    def require_faces(module: Any, inputs: Any, mesh: Any) -> None:
        # The renderer goes on to the colors, and fails there on a mesh without vertices.
        if len(mesh.faces) == 0:
            raise _NoFaces

    hook = renderer.mesh_decoder.register_forward_hook(require_faces)
    try:
        mesh = renderer.decode_to_mesh(latent.to(renderer.dtype), latent.device, grid_size=grid_size)
    finally:
        hook.remove()
    return colored_mesh(mesh.verts, mesh.faces, torch.stack([mesh.vertex_channels[name] for name in "RGB"], dim=-1))


def _weight_options(folder: Path) -> dict[str, Any]:
    """How from_pretrained finds the file that `weight_files` names."""
    files = weight_files(folder)
    options: dict[str, Any] = {"use_safetensors": files[0].suffix == ".safetensors"}
    return {**options, "variant": "fp16"} if ".fp16" in files[0].name else options


@contextmanager
def _problems_named(name: str, folder: Path, part: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as problem:  # each library version and file damage raises its own type
        lines = str(problem).strip().splitlines()
        raise ConfigError(
            f"cannot load the {part} of the Shap-E model {name} from {folder}: {type(problem).__name__}: "
            f"{lines[0] if lines else 'no message'}. If its files are damaged, delete that folder and get the model again"
        ) from problem
