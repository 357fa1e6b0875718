"""What is left of a run, of real ones too."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import known
import numpy as np
import pytest
import torch
from dreammapping.comparison import records
from dreammapping.comparison.plan import ROOT, runs
from dreammapping.comparison.runner import Craft, Limits, work
from dreammapping.errors import DreamMappingError
from PIL import Image

SMALL = ["trainer.max_steps=2"]
OBJECTS = ["data.batch_size=1", "data.height=32", "data.width=32", "system.geometry.init.type=sphere", "system.geometry.init.num_points=60"]
LOOK = SimpleNamespace(views=8, image_size=32, elevation=20.0)


def test_real_runs_leave_their_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(records, "_networks", [known.Network()])
    of = {"gs": [*records.views_of(LOOK, "gs"), *OBJECTS]}
    plan = known.plan_of(tmp_path, representations=["gs", "2d"], methods=["vdm"], seeds=[3], prompts_per_run=2, particles=2, overrides=SMALL, of=of)
    for run in (runs(plan)[0], runs(plan)[3]):
        facts = work(run.job, tmp_path, Craft(records.harvest), Limits())
        assert "failure" not in facts, facts
        count, kind = (4, "2d") if run.representation == "2d" else (8, "gs")
        arrays = records.read_arrays(tmp_path, run.job)
        assert arrays["features.fake"].shape == (count, known.LENGTH) and arrays["statistics.sharpness"].shape == (count,)
        strip = Image.open(tmp_path / "runs" / f"{run.job.name}.jpg")
        assert strip.size == (8 * 32, 32) if kind == "gs" else strip.size[0] == 4 * strip.size[1]
        images = 4 * 2 * 2 if kind == "2d" else 1 * 2 * 2  # pictures, steps, a guided pair
        assert (facts["unet_forwards"], facts["unet_backwards"], facts["steps"], facts["preset"]) == (images, 0, 2, "embedded")
        assert facts["method"] == "vdm" and facts["run_seed"] == 3 and facts["training_seconds"] > 0
    assert not list((tmp_path / "trials").iterdir())


def folder(tmp_path: Path, name: str, files: dict[str, int]) -> Path:
    place = tmp_path / "save" / name
    place.mkdir(parents=True)
    for file, gray in files.items():
        Image.new("RGB", (4, 4), (gray,) * 3).save(place / file)
    return tmp_path


def grays(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def test_the_turntable_is_read_in_order_without_its_last_view(tmp_path):
    folder(tmp_path, "it5-test", {"0.png": 99})
    run = folder(tmp_path, "it10-test", {f"{i}.png": i for i in range(12)})
    assert grays(records.last_views(run, "gs")) == list(range(11))


def test_pictures_are_read_prompt_by_prompt(tmp_path):
    names = {f"{n}-a_red_mug_{n % 3}-{p}.png": 2 * n + p for n in (99, 100, 101) for p in range(2)}
    assert grays(records.last_views(folder(tmp_path, "it7-pictures", names), "2d")) == [198, 199, 200, 201, 202, 203]
    single = {f"{n:02d}-a_gray_duck_10.png": n for n in range(12)}
    assert grays(records.last_views(folder(tmp_path / "b", "it7-pictures", single), "2d")) == list(range(12))


def test_a_run_without_views_has_failed(tmp_path):
    (tmp_path / "save").mkdir()
    with pytest.raises(DreamMappingError, match="it.-test is missing"):
        records.last_views(tmp_path, "gs")


def test_a_strip_shows_views_from_all_around():
    images = torch.arange(24.0)[:, None, None, None].expand(24, 256, 256, 3) / 24
    strip = Image.open(io.BytesIO(records.strip(images, 8)))
    assert strip.size == (8 * 128, 128)
    assert np.allclose([strip.getpixel((64 + 128 * i, 64))[0] for i in range(8)], [255 * 3 * i / 24 for i in range(8)], atol=3)
    assert Image.open(io.BytesIO(records.strip(images[:3, :40, :20], None))).size == (60, 40)


def test_pictures_are_not_looked_at_from_around():
    assert records.views_of(LOOK, "2d") == [] and "data.n_test_views=9" in records.views_of(LOOK, "gs")
