from __future__ import annotations

import errno
import sys

import pytest
import torch
from omegaconf import OmegaConf

from threestudio.errors import CheckpointError
from threestudio.utils.checkpoint import AtomicCheckpointIO, checkpoint_progress, read_checkpoint
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
