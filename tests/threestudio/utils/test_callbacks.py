from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from threestudio.utils.callbacks import (
    CodeSnapshotCallback,
    ConfigSnapshotCallback,
    CustomProgressBar,
    ProgressCallback,
    VersionedCallback,
)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_code_snapshot_holds_what_git_knows_or_would_add(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tracked.py", "new.py", "ignored.py", "load/asset.txt", "docs/page.md", "outputs/run/x.txt", "pack/deep.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("big.bin").write_bytes(bytes(5 * 2**20))
    Path(".gitignore").write_text("ignored.py\n")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "tracked.py", "load", "docs"], check=True)
    save = Path("outputs/run/code")
    CodeSnapshotCallback(save, use_version=False, exclude=["outputs"]).on_fit_start(None, None)
    copied = {path.relative_to(save).as_posix() for path in save.rglob("*") if path.is_file()}
    assert copied == {"tracked.py", "new.py", "pack/deep.py", ".gitignore"}
    assert (save / "pack/deep.py").read_text() == "pack/deep.py"


def test_without_git_there_is_a_warning_and_no_failure(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with caplog.at_level("WARNING", logger="pytorch_lightning"):
        CodeSnapshotCallback("code", use_version=False).on_fit_start(None, None)
    assert "No code snapshot" in caplog.text and not Path("code").exists()


def test_versions_count_on(tmp_path):
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_11").mkdir()
    assert Path(VersionedCallback(tmp_path).savedir) == tmp_path / "version_12"
    assert Path(VersionedCallback(tmp_path, use_version=False).savedir) == tmp_path


def test_config_snapshots_keep_the_first_raw_file(tmp_path):
    (tmp_path / "a.yaml").write_text("# comment\nseed: 1\n")
    for seed in (1, 2):
        config = OmegaConf.create({"seed": seed})
        callback = ConfigSnapshotCallback(tmp_path / "a.yaml", config, tmp_path / "configs", use_version=False)
        callback.on_fit_start(None, None)
        (tmp_path / "a.yaml").write_text("changed: true\n")
    assert (tmp_path / "configs/raw.yaml").read_text() == "# comment\nseed: 1\n"
    assert OmegaConf.load(tmp_path / "configs/parsed.yaml").seed == 2


def make_bar(step, max_steps):
    bar = CustomProgressBar()
    trainer = SimpleNamespace(
        max_steps=max_steps, global_step=step, loggers=[], progress_bar_metrics={}, progress_bar_callback=bar
    )
    bar._trainer = trainer
    bar._shown = float("-inf")
    bar.on_train_start(trainer, None)
    return bar, trainer


def test_the_bar_counts_optimizer_steps_of_all_and_resumes_where_it_was():
    bar, trainer = make_bar(40, 100)
    inner = bar.train_progress_bar
    assert (inner.total, inner.n, inner.initial) == (100, 40, 40)
    bar.on_train_epoch_start(trainer, None)
    assert inner is bar.train_progress_bar and inner.total == 100
    trainer.global_step = 41
    bar.on_train_batch_end(trainer, None, {"loss": torch.tensor(0.125)}, None, 0)
    assert inner.n == 41 and "loss=0.125" in inner.postfix
    trainer.global_step = 100
    bar.on_train_batch_end(trainer, None, {"loss": torch.tensor(0.5)}, None, 0)
    assert inner.n == 100 and "loss=0.5" in inner.postfix
    inner.close()


def test_the_bar_shows_a_logged_loss_instead():
    bar, trainer = make_bar(0, 10)
    trainer.progress_bar_metrics = {"train/loss": 0.25, "v_num": 3}
    bar._loss = 1.0
    assert bar.get_metrics(trainer, None) == {"train/loss": 0.25}
    bar.train_progress_bar.close()


def test_the_progress_file(tmp_path):
    callback = ProgressCallback(tmp_path / "progress")
    callback.on_train_batch_end(SimpleNamespace(max_steps=200, global_step=50), None)
    assert (tmp_path / "progress").read_text() == "Generating 3D model: 25% (50 of 200 steps)"
