"""What is left of a run, of real ones too."""

from __future__ import annotations

import io
from pathlib import Path

import known
import numpy as np
import pytest
import torch
from dreammapping.comparison import records
from dreammapping.comparison.__main__ import planned
from dreammapping.comparison.plan import ROOT
from dreammapping.comparison.runner import Craft, Limits, work
from PIL import Image

SMALL = ["trainer.max_steps=2"]
OBJECTS = ["data.batch_size=1", "data.height=32", "data.width=32", "system.geometry.init.type=sphere", "system.geometry.init.num_points=60"]


def test_real_runs_leave_their_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(records, "_looks", [known.LOOK])
    plan = known.plan_of(tmp_path, representations=["gs", "2d"], methods=["vdm"], seeds=[3], prompts_per_run=2, particles=2, overrides=SMALL, of={"gs": OBJECTS})
    found = planned(plan, known.LOOK.protocol)
    for run in (found[0], found[3]):
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


def test_a_strip_shows_views_from_all_around():
    images = torch.arange(24.0)[:, None, None, None].expand(24, 256, 256, 3) / 24
    strip = Image.open(io.BytesIO(records.strip(images, 8)))
    assert strip.size == (8 * 128, 128)
    assert np.allclose([strip.getpixel((64 + 128 * i, 64))[0] for i in range(8)], [255 * 3 * i / 24 for i in range(8)], atol=3)
    assert Image.open(io.BytesIO(records.strip(images[:3, :40, :20], None))).size == (60, 40)
