"""Pictures of runs and folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.evaluation.assets import Asset, find_assets, read_pictures
from PIL import Image

RED = (255, 0, 0)


def write(file: Path, color=RED, size=(8, 8), mode="RGB") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)
    return file


def make_run(folder: Path, frames: int = 25, step: int = 7, **card) -> Path:
    """A run in 3D with its config and card."""
    for i in range(frames):
        write(folder / "save" / f"it{step}-test" / f"{i}.png", (10 * i % 256, 0, 0))
    (folder / "save").mkdir(parents=True, exist_ok=True)
    facts = {"prompt": "a red mug", "seed": 3, "preset": "embedded", **card}
    (folder / "save" / "model_card.json").write_text(json.dumps(facts))
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "parsed.yaml").write_text("data:\n  eval_elevation_deg: 15.0\n  eval_width: 8\n")
    return folder


def test_a_turntable_is_in_order_without_its_last_frame(tmp_path):
    run = make_run(tmp_path / "run")
    for given in (run, run / "save"):
        (asset,) = find_assets(given)
        assert [f.stem for f in asset.pictures] == [str(i) for i in range(24)]
    assert (asset.prompt, asset.seed, asset.turntable, asset.folder) == ("a red mug", 3, True, run)
    assert asset.data == {"eval_elevation_deg": 15.0, "eval_width": 8}
    assert asset.chosen(24) == list(range(24)) and asset.chosen(4) == [0, 6, 12, 18] and asset.chosen(100) == list(range(24))


def test_the_newest_views_count(tmp_path):
    run = make_run(tmp_path / "run", step=900)
    write(run / "save" / "it1000-test" / "0.png")
    (run / "save" / "it2000-test").mkdir()  # of an interrupted test
    (asset,) = find_assets(run)
    assert [f.parent.name for f in asset.pictures] == ["it1000-test"]


def test_a_run_in_2d_is_an_asset_for_each_prompt(tmp_path):
    run = make_run(tmp_path / "run", frames=0, prompts=["a red mug", "a duck"])
    for name in ("00-a_red_mug-0", "00-a_red_mug-1", "01-a_duck-0", "01-a_duck-1"):
        write(run / "save" / "it9-pictures" / f"{name}.png")
    mug, duck = find_assets(run)
    assert (mug.prompt, duck.prompt) == ("a red mug", "a duck") and not mug.turntable
    assert [f.stem for f in duck.pictures] == ["01-a_duck-0", "01-a_duck-1"]


def test_a_folder_of_pictures_needs_a_prompt(tmp_path):
    for name in ("view9.png", "view10.jpg", "view1.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (asset,) = find_assets(tmp_path, " a red mug ", turntable=True)
    assert [f.name for f in asset.pictures] == ["view1.png", "view9.png", "view10.jpg"]
    assert asset == Asset(tmp_path, "a red mug", asset.pictures, True) and asset.seed == 0
    with pytest.raises(ConfigError, match="--prompt TEXT"):
        find_assets(tmp_path)


def test_what_is_neither_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        find_assets(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="neither a run's folder"):
        find_assets(tmp_path, "a mug")
    run = make_run(tmp_path / "run", frames=0)
    with pytest.raises(ConfigError, match="no test views"):
        find_assets(run)
    (run / "save" / "model_card.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read"):
        find_assets(run)
    (run / "save" / "model_card.json").write_text("[]")
    with pytest.raises(ConfigError, match="no facts"):
        find_assets(run)


def test_a_run_without_a_config_has_unknown_cameras(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "configs" / "parsed.yaml").write_text("data: [")
    assert find_assets(run)[0].data == {}


def test_pictures_are_resized_cut_and_laid_over_the_background(tmp_path):
    clear = write(tmp_path / "clear.png", (255, 0, 0, 0), mode="RGBA")
    wide = Image.new("RGB", (24, 8), "blue")
    wide.paste(Image.new("RGB", (8, 8), RED), (0, 0))
    wide.save(tmp_path / "wide.png")
    read = read_pictures([clear, tmp_path / "wide.png"], 4, (0.0, 1.0, 0.0), width=8)
    assert read.shape == (2, 4, 4, 3) and read.dtype == torch.float32
    torch.testing.assert_close(read[0], torch.tensor([0.0, 1, 0]).expand(4, 4, 3))
    torch.testing.assert_close(read[1], torch.tensor([1.0, 0, 0]).expand(4, 4, 3))
    torch.testing.assert_close(read_pictures([tmp_path / "wide.png"], 4)[0], torch.tensor([0.0, 0, 1]).expand(4, 4, 3))  # the middle


def test_small_pictures_of_the_right_size_stay_as_they_are(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert torch.equal((read_pictures([tmp_path / "a.png"], 8)[0] * 255).round().byte(), torch.from_numpy(values))


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ConfigError, match="a.png"):
        read_pictures([tmp_path / "a.png"], 8)
