"""OpenAI's package: a stand-in with exactly the signatures of its commit 5013101 (June 2023), as it cannot be installed here."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, Optional

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.initialization import ShapESettings, shap_e_mesh

TRIANGLE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])


class StandIn:
    """The package as modules; what is called is written down in `calls`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.empty = False
        self.fail: Exception | None = None
        url = "https://example.org/{}".format
        self.download = SimpleNamespace(
            MODEL_PATHS={"transmitter": url("transmitter.pt"), "text300M": url("text_cond.pt")},
            CONFIG_PATHS={"diffusion": url("diffusion_config.yaml")},
            URL_HASHES={url("transmitter.pt"): "a" * 64, url("text_cond.pt"): "b" * 64, url("diffusion_config.yaml"): "c" * 64},
            load_config=self.load_config,
            load_model=self.load_model,
        )

    def modules(self) -> dict[str, ModuleType]:
        contents = {
            "shap_e": {}, "shap_e.models": {"download": self.download}, "shap_e.models.download": vars(self.download),
            "shap_e.diffusion": {}, "shap_e.diffusion.sample": {"sample_latents": self.sample_latents},
            "shap_e.diffusion.gaussian_diffusion": {"diffusion_from_config": lambda config: ("diffusion", config)},
            "shap_e.util": {}, "shap_e.util.notebooks": {"decode_latent_mesh": self.decode_latent_mesh},
        }  # fmt: skip
        made = {}
        for name, content in contents.items():
            made[name] = ModuleType(name)
            made[name].__dict__.update(content)
        return made

    def load_config(self, config_name: str, progress: bool = False, cache_dir: Optional[str] = None, chunk_size: int = 4096):
        self.calls.append(("load_config", config_name))
        return {"name": config_name}

    def load_model(self, model_name: str, device: torch.device, **kwargs):
        if self.fail is not None:
            raise self.fail
        assert not kwargs
        self.calls.append(("load_model", model_name))
        return SimpleNamespace(renderer=SimpleNamespace(grid_size=128), name=model_name, device=device)

    def sample_latents(
        self, *, batch_size: int, model: Any, diffusion: Any, model_kwargs: dict, guidance_scale: float, clip_denoised: bool, use_fp16: bool,
        use_karras: bool, karras_steps: int, sigma_min: float, sigma_max: float, s_churn: float, device: Optional[torch.device] = None,
        progress: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        self.calls.append(("sample_latents", {k: v for k, v in locals().items() if k != "self"}))
        return torch.randn(batch_size, 5)  # the package draws from the global generator

    def decode_latent_mesh(self, xm: Any, latent: torch.Tensor):
        self.calls.append(("decode_latent_mesh", (xm.name, xm.renderer.grid_size)))
        assert latent.shape == (5,) and xm.name == "transmitter"
        verts = torch.zeros(3, 3) if self.empty else TRIANGLE + latent[:3]
        channels = {name: torch.full((3,), value) for name, value in zip("RGB", (0.0, 0.2140411, 1.0))}
        return SimpleNamespace(verts=verts, faces=torch.tensor([[0, 1, 2]]), vertex_channels=channels)


@pytest.fixture
def package(monkeypatch) -> StandIn:
    stand_in = StandIn()
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return stand_in


@pytest.fixture
def original(tmp_path):
    return lambda **changes: ShapESettings(**{"backend": "original", "seed": 0, "cache_dir": str(tmp_path / "cache"), **changes})


def test_the_package_is_asked_as_its_examples_ask_it(package, original):
    mesh = shap_e_mesh("a red mug", original(steps=32, guidance_scale=7.0, grid_size=64), "cpu")
    asked = dict(package.calls)["sample_latents"]
    assert asked["model_kwargs"] == {"texts": ["a red mug"]} and asked["model"].name == "text300M"
    assert asked["diffusion"] == ("diffusion", {"name": "diffusion"})
    assert (asked["karras_steps"], asked["guidance_scale"], asked["use_karras"], asked["clip_denoised"]) == (32, 7.0, True, True)
    assert (asked["sigma_min"], asked["sigma_max"], asked["s_churn"], asked["batch_size"]) == (1e-3, 160, 0, 1)
    assert asked["use_fp16"] is False and asked["device"] == torch.device("cpu")
    assert dict(package.calls)["decode_latent_mesh"] == ("transmitter", 64)
    torch.testing.assert_close(mesh.colors[0], torch.tensor([0.0, 0.5, 1.0]), rtol=0, atol=1e-4)  # linear light to sRGB


def test_its_draws_follow_the_seed_and_leave_the_global_numbers_alone(package, original, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    folders = [str(tmp_path / name) for name in "abc"]
    first, again, other = (shap_e_mesh("a mug", original(seed=s, cache_dir=f), "cpu") for s, f in zip((1, 1, 2), folders))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.vertices, again.vertices) and not torch.equal(first.vertices, other.vertices)


def test_half_precision_is_passed_on(package, original):
    shap_e_mesh("a mug", original(half_precision=True), "cpu")
    assert dict(package.calls)["sample_latents"]["use_fp16"] is True


def test_a_mesh_made_before_loads_nothing_unless_the_published_hashes_changed(package, original):
    shap_e_mesh("a mug", original(), "cpu")
    package.calls.clear()
    shap_e_mesh("a mug", original(), "cpu")
    assert package.calls == []
    package.download.URL_HASHES["https://example.org/text_cond.pt"] = "d" * 64
    shap_e_mesh("a mug", original(), "cpu")
    assert ("load_model", "text300M") in package.calls


def test_it_shares_no_meshes_with_diffusers(package, original, settings, tmp_path):
    shap_e_mesh("a red mug", original(), "cpu")
    shap_e_mesh("a red mug", settings(cache_dir=str(tmp_path / "cache")), "cpu")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_single_point_it_makes_of_an_empty_field_is_an_empty_mesh(package, original):
    package.empty = True
    with pytest.raises(ConfigError, match="empty mesh of 'a mug'"):
        shap_e_mesh("a mug", original(), "cpu")


@pytest.mark.parametrize("problem", [ConnectionError("no route"), RuntimeError("The file should have hash ...")])
def test_weights_that_cannot_be_had(package, original, problem):
    package.fail = problem
    with pytest.raises(ConfigError, match="cannot get its transmitter.*shap_e_model_cache"):
        shap_e_mesh("a mug", original(), "cpu")


def test_a_package_that_is_not_installed_is_named_with_its_command(original, monkeypatch):
    monkeypatch.setitem(sys.modules, "shap_e", None)
    with pytest.raises(ConfigError, match=r"needs the package shap-e.*pip install ipywidgets .shap-e @ git\+https://github.com/openai/shap-e"):
        shap_e_mesh("a mug", original(), "cpu")


def test_a_package_without_ipywidgets_is_explained(package, original, monkeypatch):
    monkeypatch.setitem(sys.modules, "shap_e.util.notebooks", None)
    with pytest.raises(ConfigError, match="shap_e.util.notebooks.*pip install ipywidgets"):
        shap_e_mesh("a mug", original(), "cpu")
