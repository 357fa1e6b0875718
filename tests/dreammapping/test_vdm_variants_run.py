"""What goes beyond the paper in VDM, by the command line: shipped config, an override, a miniature teacher; cut and resumed."""

from __future__ import annotations

import pytest
import threestudio
import torch
from dreammapping.degradation import train

import launch
from tests.helpers import small_run
from tests.helpers.tiny_teacher import make_tiny_teacher

VARIANTS = {
    "measured": ["system.guidance.loss.dca={type: measured, rule: predict, bins: 5}"],
    "learned": ["system.guidance.loss.dca.type=learned"],
    "knows t, trained beforehand": ["system.guidance.loss.m_time_cond=true"],
}


class PowerCut(Exception):
    """Nothing that anybody catches."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def operator(teacher, tmp_path_factory):
    output = tmp_path_factory.mktemp("operator")
    small = "--time-cond --count 8 --times 1 --steps 2 --batch 4 --sample-steps 2 --device cpu".split()
    train.main(["--teacher", str(teacher), "--output", str(output), *small])
    return output


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_runs_and_resumes_to_the_bit(variant, teacher, operator, tmp_path, monkeypatch):
    """Interrupted at the last of four steps, with a checkpoint from the second; then the rest."""
    monkeypatch.chdir(small_run.ROOT)
    own = [*VARIANTS[variant], *([f"system.guidance.loss.psi_start={operator}"] if "beforehand" in variant else [])]
    system = threestudio.find("dreammapping-image-system")
    step = system.training_step

    def interrupted(self, batch, batch_idx):
        if self.true_global_step == 3:
            raise PowerCut
        return step(self, batch, batch_idx)

    def arguments(name):
        changes = [
            f"exp_root_dir={tmp_path}", f"name={name}", "tag=small", "use_timestamp=false", "seed=3",
            f"system.prompt_processor.pretrained_model_name_or_path={teacher}", "system.prompt_processor.spawn=false",
            "trainer.max_steps=4", "trainer.val_check_interval=2", "checkpoint.every_n_train_steps=2", *own,
        ]  # fmt: skip
        return ["--config", str(small_run.CONFIG.with_name("vdm-2d.yaml")), "--train", "--preset", "paper", *changes]

    assert launch.main(arguments("whole")) == 0
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(system, "training_step", interrupted)
        launch.main(arguments("cut"))
    whole, cut = (tmp_path / name / "small" for name in ("whole", "cut"))
    last = cut / "ckpts" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 2
    kept = {"measured": "above", "learned": "theta"}
    if variant in kept:
        assert f"guidance.loss.coefficient.{kept[variant]}" in saved["state_dict"]
    assert launch.main(["--config", str(cut / "configs" / "parsed.yaml"), "--train", f"resume={last}"]) == 0
    assert small_run.differences(whole / "ckpts" / "last.ckpt", last) == []
