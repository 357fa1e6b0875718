"""Shap-E by OpenAI's own package, https://github.com/openai/shap-e (MIT)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import ConfigError
from ..mesh import ColoredMesh
from .backends import BACKENDS, Backend, Request, colored_mesh, empty_mesh_error
from .weights import WAY_ON

DECODER, TEXT_MODEL, DIFFUSION = "transmitter", "text300M", "diffusion"
INSTALL = 'pip install ipywidgets "shap-e @ git+https://github.com/openai/shap-e"'
# Its examples' noise levels.
SIGMA_MIN, SIGMA_MAX = 1e-3, 160.0


@BACKENDS.register("original")
class OriginalBackend(Backend):
    """The package fetches its weights into shap_e_model_cache in the working directory, and checks their hashes."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        with _package():
            from shap_e.models import download
        self._download = download

    @property
    def identity(self) -> dict[str, str]:
        known = self._download
        urls = [known.MODEL_PATHS[DECODER], known.MODEL_PATHS[TEXT_MODEL], known.CONFIG_PATHS[DIFFUSION]]
        return {"weights": " ".join(known.URL_HASHES[url] for url in urls)}

    def generate(self) -> ColoredMesh:
        request = self.request
        with _package():
            from shap_e.diffusion.gaussian_diffusion import diffusion_from_config
            from shap_e.util.notebooks import decode_latent_mesh
        decoder, model = self._load(DECODER), self._load(TEXT_MODEL)
        diffusion = diffusion_from_config(self._get(self._download.load_config, DIFFUSION))
        latent = _sample(model, diffusion, request)[0].float()
        decoder.renderer.grid_size = request.settings.grid_size
        mesh = decode_latent_mesh(decoder, latent)
        # Of an empty field the package makes one triangle whose corners coincide.
        if len(mesh.faces) == 0 or bool((mesh.verts == mesh.verts[:1]).all()):
            raise empty_mesh_error(request, latent)
        return colored_mesh(mesh.verts, mesh.faces, torch.stack([mesh.vertex_channels[name] for name in "RGB"], dim=-1))

    def _load(self, name: str) -> Any:
        return self._get(self._download.load_model, name, device=self.request.device)

    @staticmethod
    def _get(load: Any, name: str, **options: Any) -> Any:
        try:
            return load(name, **options)
        except (OSError, RuntimeError) as problem:  # network (requests raises OSErrors), or a file with another hash
            raise ConfigError(
                f"The package shap-e cannot get its {name}: {type(problem).__name__}: {problem}. It needs the network once, "
                f"or the files in shap_e_model_cache in the working directory. {WAY_ON}"
            ) from problem


def _sample(model: Any, diffusion: Any, request: Request) -> torch.Tensor:
    """A latent [1, width]. The package draws from torch's global generator of its device."""
    from shap_e.diffusion.sample import sample_latents

    with torch.random.fork_rng(devices=[request.device] if request.device.type == "cuda" else []):
        torch.manual_seed(request.seed)
        return sample_latents(
            batch_size=1,
            model=model,
            diffusion=diffusion,
            guidance_scale=request.settings.guidance_scale,
            model_kwargs={"texts": [request.prompt]},
            progress=False,
            clip_denoised=True,
            use_fp16=request.half,
            use_karras=True,
            karras_steps=request.settings.steps,
            sigma_min=SIGMA_MIN,
            sigma_max=SIGMA_MAX,
            s_churn=0.0,
            device=request.device,
        )


@contextmanager
def _package() -> Iterator[None]:
    try:
        yield
    except ImportError as problem:
        raise ConfigError(
            f"shap_e.backend is original, which needs the package shap-e ({problem}); install it with: {INSTALL}\n"
            "backend diffusers needs nothing more"
        ) from problem
