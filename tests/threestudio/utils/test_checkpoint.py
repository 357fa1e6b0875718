from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from threestudio.errors import CheckpointError
from threestudio.utils.checkpoint import (
    AtomicCheckpointIO,
    BackgroundCheckpointIO,
    checkpoint_progress,
    read_checkpoint,
)
from threestudio.utils.misc import find_last_path, load_module_weights


def content(value=1.0, size=1000):
    return {"state_dict": {"a.w": torch.full((size,), value), "b.w": torch.ones(2)}, "epoch": 1, "global_step": 7}


def files(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_checkpoint_comes_back(tmp_path):
    AtomicCheckpointIO().save_checkpoint(content(), str(tmp_path / "sub" / "last.ckpt"))
    loaded = AtomicCheckpointIO().load_checkpoint(str(tmp_path / "sub" / "last.ckpt"), weights_only=None)
    assert torch.equal(loaded["state_dict"]["a.w"], torch.ones(1000))
    assert checkpoint_progress(tmp_path / "sub" / "last.ckpt") == (1, 7)
    assert files(tmp_path / "sub") == ["last.ckpt"]


@pytest.mark.parametrize("keep", [0, 1, 100, 3000, -1])
@pytest.mark.parametrize("mmap", [False, True])
def test_truncation_is_noticed_wherever_it_happens(tmp_path, keep, mmap):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(), str(path))
    (tmp_path / "older.ckpt").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or no checkpoint.*older.ckpt"):
        read_checkpoint(path, mmap=mmap)


@pytest.mark.parametrize(
    "value, message",
    [({"state_dict": {}}, "lacks epoch, global_step"), (torch.ones(3), "no training checkpoint")],
)
def test_foreign_files_are_refused(tmp_path, value, message):
    torch.save(value, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.ckpt")


def test_text_folders_and_missing_files_are_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello there")
    cases = [("text.ckpt", "no checkpoint"), ("none.ckpt", "no such file.*text.ckpt"), ("", "is a folder")]
    for name, message in cases:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


def test_objects_are_never_unpickled_and_warned_about_at_saving(tmp_path, caplog):
    path = tmp_path / "x.ckpt"
    unsafe = {**content(), "betas": OmegaConf.create([0.9, 0.99])}
    with caplog.at_level("WARNING", logger="pytorch_lightning"):
        AtomicCheckpointIO().save_checkpoint(unsafe, str(path))
    assert "omegaconf" in caplog.text
    with pytest.raises(CheckpointError, match="Python objects"):
        read_checkpoint(path)


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1.0), str(path))

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="disk is full.*previous file is unchanged.*resume"):
        AtomicCheckpointIO().save_checkpoint(content(2.0), str(path))
    assert files(tmp_path) == ["last.ckpt"]
    assert read_checkpoint(path)["state_dict"]["a.w"][0] == 1.0


@pytest.mark.skipif(sys.platform == "win32", reason="the operating system cannot limit file sizes")
def test_a_write_the_system_cuts_off_leaves_the_previous_file(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1.0), str(path))
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(CheckpointError, match="Could not write the checkpoint.*previous file is unchanged"):
            AtomicCheckpointIO().save_checkpoint(content(2.0, size=100_000), str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(tmp_path) == ["last.ckpt"]
    assert read_checkpoint(path)["state_dict"]["a.w"][0] == 1.0


def test_parts_of_a_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(), str(path))
    state, epoch, step = load_module_weights(path, module_name="a", map_location="cpu")
    assert list(state) == ["w"] and (epoch, step) == (1, 7)
    state, _, _ = load_module_weights(path, ignore_modules=["a"], map_location="cpu")
    assert list(state) == ["b.w"]
    with pytest.raises(ValueError, match="not both"):
        load_module_weights(path, module_name="a", ignore_modules=["b"])


def test_last_is_the_newest_trial(tmp_path):
    for name in ("a_cat@20240101-000000", "a_cat@20250101-000000", "a_dog@20260101-000000"):
        (tmp_path / name).mkdir()
    assert find_last_path(str(tmp_path / "a cat@LAST" / "ckpts" / "last.ckpt")) == str(
        tmp_path / "a_cat@20250101-000000" / "ckpts" / "last.ckpt"
    )
    assert find_last_path("plain/path.ckpt") == "plain/path.ckpt"
    with pytest.raises(CheckpointError, match="no entry that starts with 'a_bird@'"):
        find_last_path(str(tmp_path / "a_bird@LAST" / "x"))


# ---- by a thread ----


@pytest.fixture
def later(monkeypatch):
    """A BackgroundCheckpointIO whose thread waits, before it writes anything, until `gate` is set."""
    io, place = BackgroundCheckpointIO(), AtomicCheckpointIO._place
    io.gate = threading.Event()

    def held_up(self, *arguments):
        io.gate.wait(60)
        place(self, *arguments)

    monkeypatch.setattr(AtomicCheckpointIO, "_place", held_up)
    yield io
    io.gate.set()
    io.finish_quietly()


def a_models_checkpoint():
    """What a file keeps besides values: shared memory, strides, a module's versions, types, counters."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(3, 4))
    model[2].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters())
    model[1](model[0](torch.ones(2, 3))).sum().backward()
    optimizer.step()
    grid = torch.arange(12.0).view(3, 4)
    extra = {"row": grid[1], "column": grid[:, 2], "half": torch.ones(2).half(), "list": [1, (2, "three")]}
    state = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "extra": extra}
    return model, optimizer, grid, {**state, "epoch": 0, "global_step": 1}


def test_the_thread_writes_what_was_there_byte_for_byte(tmp_path, later):
    model, optimizer, grid, checkpoint = a_models_checkpoint()
    later.gate.set()
    AtomicCheckpointIO().save_checkpoint(checkpoint, str(tmp_path / "now.ckpt"))
    later.gate.clear()
    later.save_checkpoint(checkpoint, str(tmp_path / "later.ckpt"))
    model[1](model[0](torch.ones(2, 3))).sum().backward()
    optimizer.step()  # training goes on, in place
    grid.zero_()
    checkpoint["extra"]["list"].append(4)
    checkpoint["global_step"] = 2
    assert files(tmp_path) == ["now.ckpt"]
    later.gate.set()
    later.teardown()
    assert (tmp_path / "later.ckpt").read_bytes() == (tmp_path / "now.ckpt").read_bytes()
    assert read_checkpoint(tmp_path / "later.ckpt")["state_dict"]._metadata["1"]["version"] == 2


def test_reading_waits_for_the_file(tmp_path, later):
    later.save_checkpoint(content(3.0), str(tmp_path / "last.ckpt"))
    threading.Timer(0.2, later.gate.set).start()
    assert later.load_checkpoint(str(tmp_path / "last.ckpt"))["state_dict"]["a.w"][0] == 3.0


def test_an_old_checkpoint_is_removed_only_when_the_new_one_is_there(tmp_path, later):
    old, new = str(tmp_path / "old.ckpt"), str(tmp_path / "new.ckpt")
    later.gate.set()
    later.save_checkpoint(content(), old)
    later._writer.flush()
    later.gate.clear()
    later.save_checkpoint(content(), new)
    later.remove_checkpoint(old)
    assert files(tmp_path) == ["old.ckpt"]
    later.gate.set()
    later.teardown()
    assert files(tmp_path) == ["new.ckpt"]


def test_a_checkpoint_that_was_never_written_is_not_left_behind(tmp_path, later):
    later.save_checkpoint(content(), str(tmp_path / "a.ckpt"))
    later.remove_checkpoint(str(tmp_path / "a.ckpt"))
    later.gate.set()
    later.teardown()
    assert files(tmp_path) == []


@pytest.mark.parametrize("call", ["save", "remove", "load", "teardown"])
def test_a_failure_surfaces_and_keeps_the_old_checkpoints(tmp_path, later, monkeypatch, call):
    last, older = str(tmp_path / "last.ckpt"), str(tmp_path / "older.ckpt")
    for path in (last, older):
        torch.save(content(1.0), path)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        later.save_checkpoint(content(2.0), str(tmp_path / "new.ckpt"))
        later.remove_checkpoint(older)
        later.save_checkpoint(content(2.0), last)
        later.gate.set()
        later._writer._pool.submit(int).result()  # the thread has come to the end
    calls = {"save": lambda: later.save_checkpoint(content(3.0), last), "load": lambda: later.load_checkpoint(last)}
    calls |= {"remove": lambda: later.remove_checkpoint(older), "teardown": later.teardown}
    with pytest.raises(CheckpointError, match="new.ckpt: the disk is full. No file was left behind.*resume"):
        calls[call]()
    later.teardown()
    assert files(tmp_path) == ["last.ckpt", "older.ckpt"]
    assert read_checkpoint(last)["state_dict"]["a.w"][0] == 1.0


def test_what_waits_for_the_disk_is_bounded(tmp_path, later, monkeypatch):
    monkeypatch.setattr(later._writer, "_limit", 20_000)
    saved = []

    def save():
        for number in range(4):
            later.save_checkpoint(content(), str(tmp_path / f"{number}.ckpt"))  # some 6,000 bytes
            saved.append(number)

    thread = threading.Thread(target=save, daemon=True)
    thread.start()
    thread.join(0.5)
    assert 1 <= len(saved) < 4 and thread.is_alive()
    later.gate.set()
    thread.join(60)
    assert len(saved) == 4
    later.teardown()
    assert len(files(tmp_path)) == 4


KILLED = """
import sys
import torch
from threestudio.utils.checkpoint import BackgroundCheckpointIO

io, step = BackgroundCheckpointIO(), 0
weight = torch.zeros(200_000)
while True:
    step += 1
    weight += 1
    state = {"state_dict": {"w": weight}, "epoch": 0, "global_step": step}
    io.save_checkpoint(state, sys.argv[1] + f"/{step}.ckpt")
    io.remove_checkpoint(sys.argv[1] + f"/{step - 1}.ckpt")
    io.save_checkpoint(state, sys.argv[1] + "/last.ckpt")
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path):
    chance, root = random.Random(0), Path(__file__).resolve().parents[3]
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(chance.randint(3, 30)):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.communicate()
        kept = [path for path in tmp_path.glob("*.ckpt") if not path.name.startswith(".")]
        assert {"last.ckpt"} < {path.name for path in kept}  # with one step's at least
        for path in kept:
            checkpoint = read_checkpoint(path)
            assert (checkpoint["state_dict"]["w"] == checkpoint["global_step"]).all()
            assert path.stem in ("last", str(checkpoint["global_step"]))
        for path in tmp_path.iterdir():
            path.unlink()
