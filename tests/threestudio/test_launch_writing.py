"""Pictures and checkpoints that threads write are there when the command line ends, however it ends."""

from __future__ import annotations

import errno
import re
import threading
import time

import pytest
import torch

from tests.helpers.toy_run import command, trials
from threestudio import find
from threestudio.utils import picture_saving
from threestudio.utils.checkpoint import AtomicCheckpointIO, read_checkpoint

pytestmark = pytest.mark.usefixtures("workspace")


@pytest.fixture
def slow_disk(monkeypatch):
    """Pictures and checkpoints take a while, so that one that nobody has waited for is not there."""

    def slowly(function):
        def write(*arguments):
            time.sleep(0.3)
            function(*arguments)

        return write

    monkeypatch.setattr(picture_saving, "_write_picture", slowly(picture_saving._write_picture))
    monkeypatch.setattr(AtomicCheckpointIO, "_place", slowly(AtomicCheckpointIO._place))


def paints(monkeypatch, method="validation_step"):
    """The toy system saves a picture in `method`."""

    def paint(self, batch, batch_idx):
        self.save_rgb_image(f"it{self.true_global_step}-{batch_idx}.png", torch.ones(4, 4, 3))

    monkeypatch.setattr(find("toy-system"), method, paint)


def stops(monkeypatch, error, event=None):
    """The training ends with `error` before its sixth step, when checkpoints of step 3 are there or on their way."""
    train = find("toy-system").training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == 5:
            if event is not None:
                event.set()
            raise error
        return train(self, batch, batch_idx)

    monkeypatch.setattr(find("toy-system"), "training_step", training_step)


def pictures(trial):
    return sorted(path.name for path in (trial / "save").glob("*.png"))


def test_a_finished_run_has_everything_on_disk(monkeypatch, slow_disk):
    paints(monkeypatch)
    assert command("--train") == 0
    (trial,) = trials()
    assert read_checkpoint(trial / "ckpts/last.ckpt")["global_step"] == 7
    assert pictures(trial) == sorted(f"it{step}-{view}.png" for step in (0, 2, 4, 6) for view in (0, 1) if step or not view)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("background-writer")]


@pytest.mark.parametrize("error, ends_with", [(KeyboardInterrupt(), SystemExit), (RuntimeError("power cut"), RuntimeError)])
@pytest.mark.parametrize("broken_gpu", [False, True])
def test_so_has_one_that_is_stopped(monkeypatch, slow_disk, error, ends_with, broken_gpu):
    paints(monkeypatch)
    stops(monkeypatch, error)
    if broken_gpu:  # Lightning moves the system to the CPU before it lets checkpoints be finished
        monkeypatch.setattr(find("toy-system"), "cpu", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError if broken_gpu else ends_with):
        command("--train")
    (trial,) = trials()
    assert read_checkpoint(trial / "ckpts/last.ckpt")["global_step"] == 3
    assert {"it2-1.png", "it4-1.png"} <= set(pictures(trial))


def test_step_and_last_checkpoint_do_not_hold_up_the_step(monkeypatch):
    """Nothing is written before the training has gone on by a step."""
    paints(monkeypatch)
    gate, train = threading.Event(), find("toy-system").training_step

    def held_up(function):
        def write(*arguments):
            assert gate.wait(60)
            function(*arguments)

        return write

    def training_step(self, batch, batch_idx):
        if self.global_step == 3:  # two sanity and validation pictures and the checkpoints of step 3 are waiting
            assert not list(trials()[0].glob("ckpts/*.ckpt")) and not pictures(trials()[0])
            gate.set()
        return train(self, batch, batch_idx)

    monkeypatch.setattr(picture_saving, "_write_picture", held_up(picture_saving._write_picture))
    monkeypatch.setattr(AtomicCheckpointIO, "_place", held_up(AtomicCheckpointIO._place))
    monkeypatch.setattr(find("toy-system"), "training_step", training_step)
    assert command("--train") == 0
    assert gate.is_set() and len(pictures(trials()[0])) == 7


@pytest.mark.parametrize("what", ["picture", "checkpoint"])
def test_a_failed_write_ends_the_run_with_one_message(monkeypatch, capsys, what):
    def broken(*_args):
        raise OSError(errno.EACCES, "Permission denied")

    paints(monkeypatch)
    place = (picture_saving, "atomic_path") if what == "picture" else (AtomicCheckpointIO, "_warn_about_objects")
    monkeypatch.setattr(*place, broken)
    assert command("--train") == 2
    error = capsys.readouterr().err
    assert "Permission denied" in error and "Traceback" not in error
    assert re.search("error: .*(it0-0.png|step=3.ckpt)", error)
    assert not (trials()[0] / "ckpts/last.ckpt").exists()


def test_a_failed_write_does_not_hide_why_the_run_ended(monkeypatch, caplog):
    ended = threading.Event()

    def broken(*_args):
        assert ended.wait(60)  # or it would be the reason
        raise OSError(errno.EACCES, "Permission denied")

    stops(monkeypatch, RuntimeError("power cut"), ended)
    monkeypatch.setattr(AtomicCheckpointIO, "_warn_about_objects", broken)
    with pytest.raises(RuntimeError, match="power cut"), caplog.at_level("WARNING", logger="pytorch_lightning"):
        command("--train", "checkpoint.every_n_train_steps=5", "trainer.val_check_interval=7")
    assert "last.ckpt" in caplog.text or "step=5.ckpt" in caplog.text


@pytest.mark.parametrize("mode", ["--test", "--validate", "--export"])
def test_an_evaluation_looks_at_pictures_that_are_there(monkeypatch, slow_disk, mode):
    assert command("--train") == 0
    (trial,) = trials()
    stage = {"--test": "test", "--validate": "validation", "--export": "predict"}[mode]
    seen = []
    paints(monkeypatch, f"{stage}_step")
    monkeypatch.setattr(find("toy-system"), f"on_{stage}_epoch_end", lambda self: seen.extend(pictures(trial)))
    assert command(mode, f"resume={trial}/ckpts/last.ckpt", config=trial / "configs/parsed.yaml") == 0
    assert pictures(trial) == ["it7-0.png", "it7-1.png"]
    assert seen == pictures(trial) or mode == "--validate"
