"""Whole runs that start from Shap-E, small."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers import small_run
from tests.helpers.tiny_shap_e import make_tiny_shap_e
from tests.helpers.tiny_teacher import make_tiny_teacher

launch = pytest.importorskip("launch")
STEPS = 4
LAST = Path("ckpts") / "last.ckpt"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_teacher(folder / "teacher")
    make_tiny_shap_e(folder / "shap-e")
    return folder


def overrides(models: Path, outputs: Path, *more: str) -> list[str]:
    return [
        *small_run.overrides(models / "teacher", outputs, STEPS, 2),
        f"system.geometry.init.shap_e.model={models / 'shap-e'}",
        "system.geometry.init.shap_e.steps=2", "system.geometry.init.shap_e.grid_size=16",
        f"system.geometry.init.shap_e.cache_dir={outputs / 'cache'}", "checkpoint.save_top_k=-1", *more,
    ]  # fmt: skip


def run(mode: str, config: Path, *arguments: str) -> int:
    return launch.main(["--config", str(config), mode, "--preset", "paper", *arguments])


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory) -> Path:
    """The folder of a run with `init: {type: shap-e, prompt: the run's}`."""
    outputs = tmp_path_factory.mktemp("whole")
    start = ["system.geometry.init.type=shap-e", "system.geometry.init.prompt=${system.prompt_processor.prompt}"]
    assert run("--train", small_run.CONFIG, *overrides(models, outputs, *start)) == 0
    return outputs / "run" / "small"


def test_a_run_starts_from_the_prompt_s_mesh(whole: Path):
    assert len(list((whole.parents[1] / "cache").glob("*.safetensors"))) == 1
    assert sorted(file.suffix for file in (whole / "save" / f"it{STEPS}-export").iterdir()) == [".ply", ".ply", ".splat"]
    assert "Shap-E: 'a red striped mug'" in (whole / "logs").read_text()


def test_threestudio_s_conversion_key_does_the_same(whole: Path, models: Path, tmp_path: Path):
    more = ["system.geometry_convert_from=shap-e:a red striped mug"]
    assert run("--train", small_run.CONFIG, *overrides(models, tmp_path, *more)) == 0
    assert small_run.differences(whole / LAST, tmp_path / "run" / "small" / LAST) == []


def test_resuming_and_exporting_need_neither_weights_nor_cache(whole: Path, models: Path, tmp_path: Path):
    """From the middle of the run, without Shap-E, to where the uninterrupted one ended."""
    config, middle = tmp_path / "parsed.yaml", tmp_path / "middle.ckpt"
    shutil.copy(whole / "configs" / "parsed.yaml", config)
    shutil.copy(next((whole / "ckpts").glob("*step=2.ckpt")), middle)
    moved = models / "moved"
    (models / "shap-e").rename(moved)
    try:
        here = [f"exp_root_dir={tmp_path}", f"system.geometry.init.shap_e.cache_dir={tmp_path / 'cache'}"]
        assert run("--train", config, f"resume={middle}", *here) == 0
        folder = tmp_path / "run" / "small"
        assert small_run.differences(whole / LAST, folder / LAST) == []
        assert "type: shap-e" in (folder / "configs" / "parsed.yaml").read_text()
        assert run("--export", config, f"resume={folder / LAST}", *here) == 0
        assert not (tmp_path / "cache").exists()
    finally:
        moved.rename(models / "shap-e")


def test_weights_that_are_nowhere_end_the_run_with_one_message(models: Path, tmp_path: Path, capsys):
    start = ["system.geometry.init.type=shap-e", "system.geometry.init.prompt=a mug"]
    assert run("--train", small_run.CONFIG, *overrides(models, tmp_path, *start), "system.geometry.init.shap_e.model=./nowhere") == 2
    said = capsys.readouterr().err
    assert "was not found" in said and "system.geometry.init.type=sphere" in said and "Traceback" not in said
