"""What teachers draw, against the same pipelines called by hand."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError, DreamMappingError
from dreammapping.evaluation import reference_samples as module
from dreammapping.evaluation.reference_samples import SampleSettings, reference_samples
from PIL import Image

from tests.helpers.tiny_pipelines import make_tiny
from tests.helpers.tiny_teacher import make_tiny_teacher

PROMPTS = ["a red mug", "a blue chair"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"), image_size=16)


@pytest.fixture
def settings(teacher) -> SampleSettings:
    return SampleSettings(str(teacher), guidance_scale=3.0, steps=3, per_prompt=2)


@pytest.fixture
def draws(monkeypatch) -> list[int]:
    """How many pictures were drawn at once, each time."""
    calls, draw = [], module._draw
    monkeypatch.setattr(module, "_draw", lambda pipeline, samples, s: calls.append(len(samples)) or draw(pipeline, samples, s))
    return calls


def pixels(files: list[Path]) -> list[list]:
    return [np.asarray(Image.open(file)).tolist() for file in files]


def test_they_are_what_diffusers_draws(settings, teacher, tmp_path):
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    found = reference_samples(PROMPTS, settings, cache_dir=tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(teacher)
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    sample = module._Sample(PROMPTS[1], 1, settings, module.locate(str(teacher)), torch.float32, tmp_path)
    by_hand = plain(PROMPTS[1], num_inference_steps=3, guidance_scale=3.0, generator=torch.Generator().manual_seed(sample.seed)).images[0]
    seen = np.asarray(Image.open(found[PROMPTS[1]][1])).astype(int)
    assert np.abs(seen - np.asarray(by_hand)).max() <= 1 and seen.std() > 3
    assert not np.array_equal(seen, np.asarray(Image.open(found[PROMPTS[1]][0])))


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_other_pipelines_draw_too(kind, tmp_path):
    folder = make_tiny(tmp_path / kind, kind)
    found = reference_samples(PROMPTS[:1], SampleSettings(str(folder), steps=2, per_prompt=1), cache_dir=tmp_path / "cache")
    assert np.asarray(Image.open(found[PROMPTS[0]][0])).std() > 1


def test_a_second_time_draws_nothing_and_more_pictures_are_added(settings, tmp_path, draws):
    said = []
    first = reference_samples(PROMPTS, settings, cache_dir=tmp_path, report=said.append)
    assert draws == [2, 2] and said == [f"drew 2 references of {prompt!r}" for prompt in PROMPTS]
    assert reference_samples(PROMPTS, settings, cache_dir=tmp_path, report=said.append) == first and draws == [2, 2] and len(said) == 2
    more = reference_samples(PROMPTS, replace(settings, per_prompt=3), cache_dir=tmp_path)
    assert draws == [2, 2, 1, 1] and all(more[p][:2] == first[p] for p in PROMPTS)
    assert len({tuple(map(str, p)) for p in pixels([f for files in more.values() for f in files])}) == 6


def test_the_batch_changes_nothing(settings, tmp_path):
    alone, together = (reference_samples(PROMPTS[:1], settings, cache_dir=tmp_path / str(n), batch=n)[PROMPTS[0]] for n in (1, 2))
    assert [f.name for f in alone] == [f.name for f in together]
    assert np.abs(np.array(pixels(alone)) - np.array(pixels(together))).max() <= 1


@pytest.mark.parametrize("change", [{"guidance_scale": 4.0}, {"steps": 4}, {"negative_prompt": "ugly"}, {"seed": 1}], ids=str)
def test_every_setting_makes_others(settings, tmp_path, draws, change):
    first = reference_samples(PROMPTS[:1], settings, cache_dir=tmp_path)
    second = reference_samples(PROMPTS[:1], replace(settings, **change), cache_dir=tmp_path)
    assert len(draws) == 2 and pixels(first[PROMPTS[0]]) != pixels(second[PROMPTS[0]])


def test_other_weights_under_the_same_name_make_others(settings, tmp_path, draws):
    folder = make_tiny_teacher(tmp_path / "model", image_size=16)
    mine = replace(settings, teacher=str(folder))
    reference_samples(PROMPTS[:1], mine, cache_dir=tmp_path / "cache")
    make_tiny_teacher(folder, image_size=16, seed=1)
    reference_samples(PROMPTS[:1], mine, cache_dir=tmp_path / "cache")
    assert len(draws) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_damaged_pictures_are_drawn_again(settings, tmp_path, draws, caplog, damage):
    caplog.set_level(logging.WARNING, logger="pytorch_lightning")
    first, second = reference_samples(PROMPTS[:1], settings, cache_dir=tmp_path)[PROMPTS[0]]
    whole = first.read_bytes()
    first.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no picture", "other": second.read_bytes()}[damage])
    reference_samples(PROMPTS[:1], settings, cache_dir=tmp_path)
    assert draws == [2, 1] and pixels([first])[0] != pixels([second])[0] and "drawn again" in caplog.text


def test_killed_while_drawing_it_goes_on(settings, tmp_path, monkeypatch, draws):
    replaced, count = os.replace, []

    def kill_at_the_third(*places):
        count.append(places)
        if len(count) == 3:
            raise KeyboardInterrupt
        replaced(*places)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", kill_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            reference_samples(PROMPTS, settings, cache_dir=tmp_path, batch=1)
    assert len(list(tmp_path.rglob("*.*"))) == 2
    reference_samples(PROMPTS, settings, cache_dir=tmp_path, batch=1)
    assert len(draws) == 3 + 2 and len(list(tmp_path.rglob("*.png"))) == 4


def test_mistakes_are_told(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="give another folder"):
        reference_samples(PROMPTS[:1], settings, cache_dir=tmp_path / "file" / "cache")
    with pytest.raises((ValueError, OSError), match="./nowhere"):
        reference_samples(PROMPTS, replace(settings, teacher="./nowhere"), cache_dir=tmp_path)
    with pytest.raises(DreamMappingError, match="at least 1"):
        replace(settings, steps=0)
    with pytest.raises(DreamMappingError, match="usual convention"):
        replace(settings, guidance_scale=0.5)
    damaged = make_tiny_teacher(tmp_path / "damaged", image_size=16)
    (damaged / "model_index.json").write_text("{")
    with pytest.raises(DreamMappingError, match="cannot load the pipeline"):
        reference_samples(PROMPTS, replace(settings, teacher=str(damaged)), cache_dir=tmp_path)


def test_the_embedded_teacher_draws(tmp_path):
    """Few steps, so a red thing before something light and gray."""
    folder = Path(__file__).resolve().parents[3] / "load" / "embedded-teacher"
    (file,) = reference_samples(["a red mug"], SampleSettings(str(folder), steps=8, per_prompt=1), cache_dir=tmp_path)["a red mug"]
    picture = np.asarray(Image.open(file)).astype(float)
    ink = picture[picture.min(-1) < 150]
    corner = picture[:8, :8].mean((0, 1))
    assert corner.min() > 150 and np.ptp(corner) < 25 and ink[:, 0].mean() > ink[:, 1:].mean() + 50
