"""Meshes by diffusers' own classes with small random weights."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import trimesh
from dreammapping.errors import ConfigError
from dreammapping.initialization import ShapESettings, shap_e_mesh
from dreammapping.initialization.shap_e import diffusers_backend
from dreammapping.initialization.shap_e.backends import Request
from dreammapping.initialization.shap_e.diffusers_backend import decode, load_pipeline, sample_latent

from tests.helpers.tiny_shap_e import LAYERS, make_renderer

CPU = torch.device("cpu")


def equal(a, b) -> bool:
    return all(getattr(a, name).shape == getattr(b, name).shape and torch.equal(getattr(a, name), getattr(b, name)) for name in ("vertices", "faces", "colors"))


def test_a_closed_colored_mesh_that_looks_outward(settings):
    mesh = shap_e_mesh("a red mug", settings(grid_size=32), "cpu")
    mesh.check()
    solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight and solid.is_winding_consistent and solid.volume > 0.01
    assert mesh.vertices.abs().max() <= 1 and len(mesh.colors.unique(dim=0)) > 50


def test_the_grid_s_size_is_heeded(settings):
    coarse, fine = (shap_e_mesh("a red mug", settings(grid_size=size), "cpu") for size in (16, 32))
    assert len(fine.faces) > 3 * len(coarse.faces)


def outputs_in_float64(renderer, latent: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Raw outputs [N, 12] of Shap-E's network (Jun and Nichol 2023, appendix A), in plain arithmetic."""
    state = {name: value.double() for name, value in renderer.state_dict().items()}
    angles = points.double()[:, None] * (2.0 ** torch.arange(15, dtype=torch.float64))[:, None]  # [N, 15, 3]
    hidden = torch.cat([points.double(), angles.sin().flatten(1), angles.cos().flatten(1)], dim=1)
    row = 0
    for layer in range(7):
        if layer < LAYERS:
            prefix = f"params_proj.projections.nerstf__mlp__{layer}__weight"
            bias = state[f"{prefix}.norm.bias"]
            count = state[f"mlp.mlp.{layer}.bias"].shape[0]
            rows = latent[0, row : row + count].double()  # [count, width]: one for each output
            row += count
            weight = torch.stack([state[f"{prefix}.proj.weight"].view(count, len(bias), -1)[i] @ rows[i] for i in range(count)])
            weight = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            weight = weight * state[f"{prefix}.norm.weight"] + bias + state[f"{prefix}.proj.bias"].view(count, -1)
        else:
            weight = state[f"mlp.mlp.{layer}.weight"]
        missing = weight.shape[1] - hidden.shape[1]
        if missing:  # without a direction its encoding is zeros
            hidden = torch.cat([hidden, hidden.new_zeros(len(hidden), missing)], dim=1)
        hidden = hidden @ weight.T + state[f"mlp.mlp.{layer}.bias"]
        if layer < 6:
            hidden = hidden * hidden.sigmoid()
    return hidden


def test_colors_and_surface_are_those_of_the_network_evaluated_by_hand(model):
    """The first outputs are the signed distance, positive inside, and then the color, in sRGB already."""
    pipeline = load_pipeline(model, "tiny", CPU, half=False)
    latent = sample_latent(pipeline, Request("a red mug", ShapESettings(steps=2), 3, CPU, False))
    size = 40
    mesh = decode(pipeline.shap_e_renderer, latent, size)
    raw = outputs_in_float64(pipeline.shap_e_renderer, latent, mesh.vertices)
    torch.testing.assert_close(mesh.colors, raw[:, 3:6].sigmoid().float(), rtol=0, atol=1e-4)
    # The volume with its closed border is drawn as if it filled [-1, 1]^3, so it comes smaller than it is.
    true = mesh.vertices * (size + 1) / (size - 1)
    inside, outside = (outputs_in_float64(pipeline.shap_e_renderer, latent, factor * true)[:, 0] for factor in (0.9, 1.1))
    assert (inside > 0).all() and (outside < 0).all()


def test_the_latent_is_the_pipelines_own(model):
    """Against the pipeline with a generator of its own: the same noise, steps and guidance."""
    pipeline = load_pipeline(model, "tiny", CPU, half=False)
    theirs = pipeline("a red mug", num_inference_steps=3, guidance_scale=4.0, generator=torch.Generator().manual_seed(7), output_type="latent").images
    ours = sample_latent(pipeline, Request("a red mug", ShapESettings(steps=3, guidance_scale=4.0), 7, CPU, False))
    assert torch.equal(ours, theirs)


def test_prompt_seed_steps_and_guidance_each_make_another_mesh(settings):
    first = shap_e_mesh("a red mug", settings(), "cpu")
    others = [
        shap_e_mesh("a blue chair", settings(), "cpu"),
        *(shap_e_mesh("a red mug", settings(**change), "cpu") for change in ({"seed": 1}, {"steps": 4}, {"guidance_scale": 3.0})),
    ]
    assert not any(equal(first, other) for other in others)


def test_made_twice_it_is_the_same(settings, tmp_path):
    first, second = (shap_e_mesh("a red mug", settings(cache_dir=str(tmp_path / name)), "cpu") for name in "ab")
    assert equal(first, second)


def test_without_a_seed_the_run_s_seed_decides_and_no_draw_before(settings):
    meshes = []
    for seed, draws in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(seed)
        torch.rand(draws)
        meshes.append(shap_e_mesh("a red mug", settings(seed=None), "cpu"))
    assert equal(meshes[0], meshes[1]) and not equal(meshes[0], meshes[2])


def test_the_global_random_numbers_are_left_alone(settings):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    shap_e_mesh("a red mug", settings(), "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_half_precision_is_for_text_and_diffusion_only(model, settings):
    pipeline = load_pipeline(model, "tiny", CPU, half=True)
    assert pipeline.prior.dtype == pipeline.text_encoder.dtype == torch.float16
    assert pipeline.shap_e_renderer.dtype == torch.float32
    half, single = (shap_e_mesh("a red mug", settings(half_precision=h), "cpu") for h in (True, None))
    assert not equal(half, single)  # None is single precision on a CPU
    sizes = [mesh.vertices.norm(dim=1).mean().item() for mesh in (half, single)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)  # from the same noise


def test_one_line_tells_time_and_memory(settings, caplog):
    caplog.set_level(logging.INFO, logger="pytorch_lightning")
    shap_e_mesh("a red mug", settings(), "cpu")
    lines = [record.getMessage() for record in caplog.records if "Shap-E" in record.getMessage()]
    assert len(lines) == 1 and "\n" not in lines[0]
    for part in ("'a red mug'", "seed 0", "vertices", " s, ", "peak memory", "GB (process)", "2 steps"):
        assert part in lines[0]


def test_an_empty_mesh_is_an_error_that_says_what_to_try(settings, monkeypatch):
    def emptied(*arguments, **options):
        pipeline = load_pipeline(*arguments, **options)
        pipeline.shap_e_renderer = make_renderer(level=3.5)
        return pipeline

    monkeypatch.setattr(diffusers_backend, "load_pipeline", emptied)
    with pytest.raises(ConfigError, match="empty mesh of 'a red mug'.*seed 0.*shap_e.seed.*init.type=sphere"):
        shap_e_mesh("a red mug", settings(), "cpu")


@pytest.mark.parametrize(("half", "hint"), [(True, "half_precision=false"), (False, "weights are damaged")])
def test_a_latent_that_is_not_finite_is_not_called_an_empty_mesh(settings, monkeypatch, half, hint):
    latent = torch.full((1, 64, 8), math.nan)
    monkeypatch.setattr(diffusers_backend, "sample_latent", lambda *_: latent)
    with pytest.raises(ConfigError, match=f"not finite.*{hint}"):
        shap_e_mesh("a red mug", settings(half_precision=half), "cpu")


@pytest.mark.parametrize("prompt", ["", "  \n", None])
def test_an_empty_prompt_is_refused(settings, prompt):
    with pytest.raises(ConfigError, match="prompt is empty"):
        shap_e_mesh(prompt, settings(), "cpu")


def test_auto_is_diffusers_even_with_the_original_package_installed(settings, monkeypatch):
    from dreammapping.initialization.shap_e import original_backend

    monkeypatch.setattr(original_backend.OriginalBackend, "__init__", lambda *_: pytest.fail("the original was taken"))
    assert equal(shap_e_mesh("a red mug", settings(backend="auto"), "cpu"), shap_e_mesh("a red mug", settings(backend="diffusers"), "cpu"))
