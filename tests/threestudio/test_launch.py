"""The command line from end to end, with a tiny system whose training draws from every global generator."""

from __future__ import annotations

import csv
import json
import os
import re

import pytest
import torch

import launch
from tests.helpers.toy_run import YAML, command, trials
from threestudio import find
from threestudio.utils.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("workspace")


def assert_equal(a, b, path=""):
    """Equal in every bit, except for the folders in the checkpoint callback's memory."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if not str(key).startswith("RunCheckpoint"):
                assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, pair in enumerate(zip(a, b)):
            assert_equal(*pair, f"{path}/{index}")
    else:
        assert a == b, path


def test_training_leaves_a_complete_trial_folder(workspace):
    assert command("--train") == 0
    (trial,) = trials()
    assert trial.name.startswith("run@")
    present = {path.relative_to(trial).as_posix() for path in trial.rglob("*") if path.is_file()}
    expected = {"configs/raw.yaml", "configs/parsed.yaml", "configs/preset.json", "cmd.txt", "logs", "ckpts/last.ckpt"}
    expected |= {"ckpts/epoch=0-step=3.ckpt", "ckpts/epoch=0-step=6.ckpt", "csv_logs/version_0/metrics.csv"}
    assert expected | {"save/it7-test.json"} <= present
    assert (trial / "configs/raw.yaml").read_text() == YAML
    assert read_checkpoint(trial / "ckpts/last.ckpt")["global_step"] == 7  # the end, though 7 is no multiple of 3
    with open(trial / "csv_logs/version_0/metrics.csv") as file:
        losses = [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 7


@pytest.mark.parametrize("manual", ["false", "true"])
def test_a_run_cut_off_and_resumed_equals_one_in_a_row(monkeypatch, manual):
    assert command("--train", "name=whole", f"system.manual={manual}") == 0
    (whole,) = trials("outputs/whole")

    system = find("toy-system")
    original = system.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == 5:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(system, "training_step", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        command("--train", "name=cut", f"system.manual={manual}")
    monkeypatch.setattr(system, "training_step", original)
    (cut,) = trials("outputs/cut")
    raw = (cut / "configs/raw.yaml").read_text()
    assert command("--train", f"resume={cut}/ckpts/last.ckpt", config=cut / "configs/parsed.yaml") == 0

    assert trials("outputs/cut") == [cut]
    assert {path.name for path in (cut / "ckpts").iterdir()} == {path.name for path in (whole / "ckpts").iterdir()}
    ends = [read_checkpoint(trial / "ckpts/last.ckpt") for trial in (whole, cut)]
    assert_equal(*ends)
    assert ends[0]["state_dict"]["geometry.ends"] > 0
    assert (whole / "save/it7-test.json").read_bytes() == (cut / "save/it7-test.json").read_bytes()
    assert (cut / "configs/raw.yaml").read_text() == raw


def test_a_finished_run_can_be_extended():
    assert command("--train", "name=long") == 0
    assert command("--train", "name=short", "trainer.max_steps=4") == 0
    (long,), (short,) = trials("outputs/long"), trials("outputs/short")
    resume = ("trainer.max_steps=7", f"resume={short}/ckpts/last.ckpt")
    assert command("--train", *resume, config=short / "configs/parsed.yaml") == 0
    states = [read_checkpoint(trial / "ckpts/last.ckpt")["state_dict"] for trial in (long, short)]
    assert_equal(*states)


def test_evaluation_knows_the_step_of_its_checkpoint():
    assert command("--train") == 0
    (trial,) = trials()
    resume = f"resume={trial}/ckpts/epoch=0-step=3.ckpt"
    for mode in ("--validate", "--test", "--export"):
        assert command(mode, resume, config=trial / "configs/parsed.yaml") == 0
    weight = read_checkpoint(trial / "ckpts/epoch=0-step=3.ckpt")["state_dict"]["geometry.weight"].tolist()
    for kind in ("test", "export"):
        assert json.loads((trial / f"save/it3-{kind}.json").read_text())["weight"] == weight
    assert trials() == [trial]


def test_the_same_seed_gives_the_same_run():
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command("--train", f"name={name}", f"seed={seed}") == 0
    a, b, c = (trials(f"outputs/{name}")[0].joinpath("save/it7-test.json").read_bytes() for name in "abc")
    assert a == b != c


def test_two_runs_within_a_second_get_two_folders():
    for _ in range(2):
        assert command("--train", "trainer.max_steps=1") == 0
    assert len(trials()) == 2


def test_weights_of_another_run_are_taken_over():
    assert command("--train") == 0
    (trial,) = trials()
    assert command("--test", "name=next", f"system.weights={trial.parent}/run@LAST/ckpts/last.ckpt") == 0
    (next_trial,) = trials("outputs/next")
    assert (next_trial / "save/it0-test.json").read_bytes() == (trial / "save/it7-test.json").read_bytes()


def test_presets_lie_over_the_config_and_under_the_command_line(workspace):
    (workspace / "presets/embedded").mkdir(parents=True)
    (workspace / "presets/embedded.yaml").write_text("seed: 5\ndescription: from preset\n")
    (workspace / "presets/embedded/toy.yaml").write_text("trainer: {max_steps: 1}\nseed: 6\n")
    assert command("--train", "description=mine") == 0
    (trial,) = trials()
    parsed = (trial / "configs/parsed.yaml").read_text()
    assert "seed: 6" in parsed and "max_steps: 1" in parsed and "description: mine" in parsed
    assert json.loads((trial / "configs/preset.json").read_text())["taken"] == "embedded"
    assert "Preset: embedded (no CUDA GPU is used)" in (trial / "cmd.txt").read_text()
    assert "Preset: embedded" in (trial / "logs").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["system.loss=3"], "system.loss is 3"),
        (["system.geometri_type=x"], "system.geometri_type is unknown to ToySystem.Config. Did you mean geometry_type"),
        (["system.geometry.widht=3"], "system.geometry.widht is unknown to ToyGeometry.Config. Did you mean width"),
        (["system.geometry.width=wide"], "system.geometry.width is 'wide'"),
        (["system.geometry_type=toy-geomtry"], "toy-geomtry.*not registered. Did you mean toy-geometry"),
        (["system_type=toy-sistem"], "system_type: 'toy-sistem' is not registered"),
        (["system_type="], "system_type is not set"),
        (["data.widht=3"], "data.widht is unknown to ToyDataConfig"),
        (["trainer.max_step=3"], "trainer.max_step is unknown to Trainer. Did you mean max_steps"),
        (["trainer.logger=true"], "trainer.logger is set by the launcher itself"),
        (["trainer.precision=17"], "trainer: "),
        (["checkpoint.every_n_step=3"], "checkpoint.every_n_step is unknown to ModelCheckpoint"),
        (["checkpoint.every_n_epochs=3"], "checkpoint: "),
        (["traner.max_steps=3"], "traner is unknown to ExperimentConfig. Did you mean trainer"),
        (["system.geometry.width=???"], "Add to the command line: system.geometry.width=VALUE"),
        (["resume=nowhere.ckpt"], "nowhere.ckpt: there is no such file"),
        (["resume=toy.yaml"], "toy.yaml (.* bytes) is truncated or no checkpoint"),
        (["--gpu", "0"], "--gpu 0 was given, but torch .* finds no CUDA GPU"),
        (["--trian"], "There is no flag --trian. Did you mean --train"),
        (["prompt"], "'prompt' is no override"),
        (["trainer.accelerator=gpu"], "trainer.accelerator is gpu"),
        (["system.optimizer.name=Adma"], "no optimizer 'Adma'"),
    ],
)
def test_mistakes_end_with_one_message_and_code_2(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command("--train", *arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    assert re.search(message.replace("(", r"\(").replace(".* bytes)", r".* bytes\)"), lines[0])
    late = arguments[0].startswith(("system.optimizer", "trainer.precision", "checkpoint.every_n_epochs"))
    assert late or trials() == []  # found before anything was written


def test_a_missing_config_and_a_missing_mode(capsys):
    assert command("--train", config="toi.yaml") == 2
    assert "There is no config file toi.yaml. In . are: toy.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2


def test_an_unset_prompt_shows_what_to_type(workspace, capsys):
    text = YAML.replace("system:\n", "system:\n  prompt_processor:\n    prompt: ???\n", 1)
    text = text.replace("tag: run", "tag: ${system.prompt_processor.prompt}")
    (workspace / "toy.yaml").write_text(text)
    assert command("--train") == 2
    error = capsys.readouterr().err
    assert "system.prompt_processor.prompt is not set. Add to the command line" in error
    assert 'system.prompt_processor.prompt="a red apple"' in error


def test_a_truncated_checkpoint_is_refused_before_the_run(capsys):
    assert command("--train") == 0
    (trial,) = trials()
    last = trial / "ckpts/last.ckpt"
    last.write_bytes(last.read_bytes()[:-200])
    before = (trial / "cmd.txt").read_bytes()
    assert command("--train", f"resume={last}", config=trial / "configs/parsed.yaml") == 2
    assert "last.ckpt" in capsys.readouterr().err and (trial / "cmd.txt").read_bytes() == before


def test_gpu_selection_respects_what_is_set(monkeypatch):
    cases = [(None, None, "0"), (None, "1,2", "1,2"), ("3", "1", "3"), ("", None, ""), ("", "1", "1")]
    for variable, requested, expected in cases:
        if variable is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        launch.select_gpus(requested)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    "requested, message",
    [
        ("0,x", "has 'x' in it; it must be a list of different numbers"),
        ("0,,1", "has '' in it"),
        ("-1", "has '-1' in it"),
        ("1,1", "names a GPU twice"),
        ("0,7", "names 2 GPUs, of which only the first 1 can be used"),
    ],
)
def test_a_gpu_list_that_cannot_be(monkeypatch, requested, message):
    from threestudio.errors import UserError
    from threestudio.launcher import choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", requested)
    with pytest.raises(UserError, match=message):
        choose_device(requested)


def test_several_cpu_processes_share_one_trial_folder():
    from threestudio.launcher import read_run_config

    config, _ = read_run_config("toy.yaml", ["trainer.devices=2", "use_timestamp=true"], "paper", use_cuda=False)
    assert config.trial_name == "run"
    config, _ = read_run_config("toy.yaml", ["use_timestamp=true"], "paper", use_cuda=False)
    assert config.trial_name.startswith("run@")
