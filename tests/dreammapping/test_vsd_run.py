"""VSD on Gaussians by the command line: the shipped config, a miniature teacher, two steps."""

from __future__ import annotations

import torch

import launch
from tests.helpers import small_run
from tests.helpers.tiny_teacher import make_tiny_teacher

CONFIG = small_run.CONFIG.with_name("vsd-gs.yaml")


def test_two_steps_train_gaussians_and_lora(tmp_path, monkeypatch):
    monkeypatch.chdir(small_run.ROOT)
    teacher = make_tiny_teacher(tmp_path / "teacher")
    changes = [*small_run.overrides(teacher, tmp_path, steps=2, every=2), "data.n_test_views=2"]
    assert launch.main(["--config", str(CONFIG), "--train", "--preset", "paper", *changes]) == 0
    folder = tmp_path / "run" / "small"
    assert (folder / "save" / "model_card.json").is_file() and (folder / "save" / "it2-test" / "1.png").is_file()
    saved = torch.load(folder / "ckpts" / "last.ckpt", map_location="cpu", weights_only=True)
    lora = {name: value for name, value in saved["state_dict"].items() if name.startswith("guidance.loss.lora")}
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in lora.items()), "it starts at zero"
    optimizer = saved["state_dict"]["guidance._extra_state"]["optimizer"]
    assert len(optimizer["state"]) == len(lora) and float(optimizer["state"][0]["step"]) == 2
    assert not any("unet" in name for name in saved["state_dict"])
