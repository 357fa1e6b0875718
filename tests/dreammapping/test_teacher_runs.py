"""Every kind of teacher through the guidance with its own prompts, and by the command line, in a few steps."""

from __future__ import annotations

import pytest
import torch
from dreammapping.guidance import DreamMappingGuidance
from omegaconf import OmegaConf

import launch
from tests.helpers import small_run
from tests.helpers.tiny_pipelines import make_tiny
from threestudio import find

KINDS = ["sd", "sdxl", "sd3"]
FORWARDS = {"sds": 2, "vdm": 2, "vsd": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {kind: make_tiny(root / kind, kind) for kind in KINDS}


def guide(folder, loss, prompts=(), **config):
    """(result, image) of one guidance call on two views, with the core's prompt processor."""
    processor = find("stable-diffusion-prompt-processor")(
        OmegaConf.create(
            {
                "pretrained_model_name_or_path": str(folder),
                "prompt": "a red mug",
                "negative_prompt": "ugly",
                "spawn": False,
                **dict(prompts),
            }
        )
    )
    model = {"pretrained_model_name_or_path": str(folder), "seed": 0, "loss": {"type": loss}, **config}
    guidance = DreamMappingGuidance(OmegaConf.create(model))
    image = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    views = {"elevation": torch.zeros(2), "azimuth": torch.tensor([0.0, 70.0]), "camera_distances": torch.ones(2)}
    return guidance(image, processor(), **views, c2w=torch.eye(4).expand(2, 4, 4), guidance_eval=True), image


@pytest.mark.parametrize("loss", FORWARDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_guidance_step(folders, tmp_path, monkeypatch, kind, loss):
    monkeypatch.chdir(tmp_path)
    out, image = guide(folders[kind], loss)
    assert out["unet_forwards"].item() == FORWARDS[loss]
    out["loss_distillation"].backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert out["eval"][name].shape == (2, 32, 32, 3) and out["eval"][name].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_perp_neg_mixes_packed_prompts(folders, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    out, _ = guide(folders[kind], "sds", {"use_perp_neg": True}, anchor="negative")
    assert out["unet_forwards"].item() == 4 and out["loss_distillation"].isfinite()


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_a_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(small_run.ROOT)
    teacher = make_tiny(tmp_path / "teacher", kind)
    changes = [*small_run.overrides(teacher, tmp_path, steps=3, every=3), "data.n_test_views=2"]
    assert launch.main(["--config", str(small_run.CONFIG), "--train", "--preset", "paper", *changes]) == 0
    folder = tmp_path / "run" / "small"
    assert (folder / "save" / "model_card.json").is_file() and (folder / "save" / "it3-test" / "1.png").is_file()
    saved = torch.load(folder / "ckpts" / "last.ckpt", map_location="cpu", weights_only=True)
    assert saved["global_step"] == 3


def test_a_width_of_dreamshaper_runs(tmp_path, monkeypatch):
    """Stable Diffusion 1.5's layout with its real text width, 8-fold VAE and another sampler's scheduler."""
    monkeypatch.chdir(small_run.ROOT)
    teacher = make_tiny(tmp_path / "teacher", "sd", text_width=768, downsample=8, image_size=64)
    config = teacher / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("DDIMScheduler", "DEISMultistepScheduler"))
    changes = [*small_run.overrides(teacher, tmp_path, steps=2, every=2), "data.n_test_views=2"]
    assert launch.main(["--config", str(small_run.CONFIG), "--train", "--preset", "paper", *changes]) == 0
    assert (tmp_path / "run" / "small" / "ckpts" / "last.ckpt").is_file()
