"""The losses with trained parts on Gaussians by the command line: shipped config, a miniature teacher, two steps."""

from __future__ import annotations

import pytest
import threestudio
import torch

import launch
from tests.helpers import small_run
from tests.helpers.tiny_teacher import make_tiny_teacher


@pytest.mark.parametrize("name", ["vsd", "asd", "dreamflow", "lods"])
def test_two_steps_train_gaussians_and_the_losss_own_part(name, tmp_path, monkeypatch):
    monkeypatch.chdir(small_run.ROOT)
    teacher = make_tiny_teacher(tmp_path / "teacher")
    changes = [*small_run.overrides(teacher, tmp_path, steps=2, every=2), "data.n_test_views=2"]
    config = small_run.CONFIG.with_name(f"{name}-gs.yaml")
    assert launch.main(["--config", str(config), "--train", "--preset", "paper", *changes]) == 0
    folder = tmp_path / "run" / "small"
    assert (folder / "save" / "model_card.json").is_file() and (folder / "save" / "it2-test" / "1.png").is_file()
    saved = torch.load(folder / "ckpts" / "last.ckpt", map_location="cpu", weights_only=True)
    trained = {key: value for key, value in saved["state_dict"].items() if key.startswith("guidance.loss.")}
    if name == "lods":
        assert {key: value.shape for key, value in trained.items()} == {"guidance.loss.embedding": (1, 24, 16)}
    else:
        assert all(key.startswith("guidance.loss.lora") for key in trained)
        assert any("lora_B" in key and value.abs().sum() > 0 for key, value in trained.items()), "it starts at zero"
    optimizer = saved["state_dict"]["guidance._extra_state"]["optimizer"]
    assert len(optimizer["state"]) == len(trained) and float(optimizer["state"][0]["step"]) == 2
    assert not any("unet" in key for key in saved["state_dict"])


class PowerCut(Exception):
    """Nothing that anybody catches."""


def test_a_learned_embedding_resumes_to_the_bit(tmp_path, monkeypatch):
    """Interrupted at the last of four steps, with a checkpoint from the second; then the rest."""
    monkeypatch.chdir(small_run.ROOT)
    teacher, config = make_tiny_teacher(tmp_path / "teacher"), small_run.CONFIG.with_name("lods-gs.yaml")
    system = threestudio.find("dreammapping-system")
    train = system.training_step

    def interrupted(self, batch, batch_idx):
        if self.true_global_step == 3:
            raise PowerCut
        return train(self, batch, batch_idx)

    def arguments(name):
        changes = [*small_run.overrides(teacher, tmp_path, steps=4, every=2, name=name), "data.n_test_views=1"]
        return ["--config", str(config), "--train", "--preset", "paper", *changes]

    assert launch.main(arguments("whole")) == 0
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(system, "training_step", interrupted)
        launch.main(arguments("cut"))
    whole, cut = (tmp_path / name / "small" for name in ("whole", "cut"))
    last = cut / "ckpts" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert launch.main(["--config", str(cut / "configs" / "parsed.yaml"), "--train", f"resume={last}"]) == 0
    assert small_run.differences(whole / "ckpts" / "last.ckpt", last) == []
