from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from threestudio.errors import ConfigError, UserError, WriteError
from threestudio.utils.background_writer import BackgroundWriter, Snapshot

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def writer():
    writer = BackgroundWriter(limit=10)
    yield writer
    writer.close_quietly()


def fails(error):
    def job():
        raise error

    return job


def test_jobs_are_done_in_order_and_elsewhere(writer):
    done, gate = [], threading.Event()
    writer.put("first", lambda: (gate.wait(60), done.append((0, threading.get_ident()))))
    for number in range(1, 5):
        writer.put(str(number), lambda number=number: done.append((number, threading.get_ident())))
    assert done == []  # `put` has waited for none
    gate.set()
    writer.flush()
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()})


@pytest.mark.parametrize("sizes, waits", [((6, 4), False), ((6, 5), True), ((11, 0), True), ((0, 11), False)])
def test_what_is_held_is_bounded(writer, sizes, waits):
    gate, done = threading.Event(), []
    writer.put("a", lambda: (gate.wait(60), done.append("a")), sizes[0])
    second = threading.Thread(target=writer.put, args=("b", lambda: done.append("b"), sizes[1]), daemon=True)
    second.start()
    second.join(0.3 if waits else 60)
    assert second.is_alive() == waits
    gate.set()
    second.join(60)
    assert not second.is_alive()
    writer.flush()
    assert done == ["a", "b"]


def test_memory_is_given_back_also_by_failures(writer):
    raised = []

    def work():
        for _ in range(5):
            writer.put("a", fails(OSError()), size=10)
            try:
                writer.put("b", int, size=10)
            except RuntimeError as error:
                raised.append(error)
        writer.put("c", int, size=10)
        writer.flush()

    thread = threading.Thread(target=work, daemon=True)  # which would wait for ever
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and len(raised) == 5


@pytest.mark.parametrize("call", ["flush", "close", "put"])
def test_a_failure_names_the_file_and_stops_what_was_behind_it(writer, monkeypatch, call):
    """Also what was still waiting when the failure was raised, and forgotten."""
    gate, known, go_on = threading.Event(), threading.Event(), threading.Event()
    done, give_back = [], writer._give_back

    def held_up(size):
        if threading.current_thread() is not threading.main_thread():
            known.set()
            go_on.wait(60)
        give_back(size)

    monkeypatch.setattr(writer, "_give_back", held_up)
    cause = ValueError("no such color")
    writer.put("x/a.png", lambda: (gate.wait(60), fails(cause)()))
    for name in "bcd":
        writer.put(name, lambda name=name: done.append(name))
    gate.set()
    assert known.wait(60)
    threading.Timer(0.3, go_on.set).start()
    with pytest.raises(RuntimeError, match="x/a.png was not written: ValueError: no such color") as caught:
        writer.put("e", lambda: done.append("e")) if call == "put" else getattr(writer, call)()
    assert caught.value.__cause__ is cause
    go_on.set()
    writer.flush()
    assert done == []
    writer.put("f", lambda: done.append("f"))  # it has been reported
    writer.flush()
    assert done == ["f"]


@pytest.mark.parametrize(
    "error, kind, text",
    [
        (WriteError("a.png cannot be written"), WriteError, "a.png cannot be written"),
        (ConfigError("the color map is odd"), UserError, "a.png: the color map is odd"),
    ],
)
def test_what_the_user_can_do_something_about_stays_that(writer, error, kind, text):
    writer.put("a.png", fails(error))
    with pytest.raises(kind) as caught:
        writer.flush()
    assert str(caught.value) == text and caught.value.is_user_error


def test_a_failing_run_hears_of_it_in_a_warning(writer, caplog):
    writer.put("a.png", fails(OSError("broken")))
    with caplog.at_level("WARNING", logger="pytorch_lightning"):
        writer.close_quietly()
    assert "a.png" in caplog.text and "broken" in caplog.text
    writer.close()


def test_after_its_end_it_can_begin_again(writer):
    before, done = threading.active_count(), []
    for number in range(2):
        writer.put("a", lambda number=number: done.append(number))
        assert threading.active_count() == before + 1
        writer.close()
        assert threading.active_count() == before
    writer.close()
    assert done == [0, 1]


@pytest.mark.parametrize("end", ["pass", "raise ValueError"])
def test_a_process_does_not_end_before_its_jobs(tmp_path, end):
    """However it ends, unless it is killed."""
    script = (
        "import sys, time; from pathlib import Path; from threestudio.utils.background_writer import BackgroundWriter\n"
        f"target = Path({str(tmp_path / 'file')!r})\n"
        "BackgroundWriter(10).put('file', lambda: (time.sleep(0.5), target.write_text('whole')))\n"
        f"assert not target.exists()\n{end}"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert (tmp_path / "file").read_text() == "whole"


def test_a_snapshot_does_not_change_with_what_it_is_of():
    x, array, label = torch.arange(6.0).view(2, 3), np.arange(3, dtype=np.uint8), {"cmap": None, "data_range": (0, 1)}
    taken = Snapshot([{"img": x.requires_grad_(), "kwargs": label}, (array, x[:, 1:].half())])
    with torch.no_grad():
        x.fill_(-1)
    array.fill(9)
    label["cmap"] = "jet"
    first, (second, third) = taken.read()
    assert first["img"].tolist() == [[0, 1, 2], [3, 4, 5]] and not first["img"].requires_grad
    assert first["kwargs"] == {"cmap": None, "data_range": (0, 1)}
    assert second.tolist() == [0, 1, 2] and third.tolist() == [[1, 2], [4, 5]] and third.dtype == torch.float16
    assert taken.size == 24 + 3 + 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_snapshot_of_a_gpu_is_of_the_moment_it_was_taken():
    x = torch.ones(2**22, device="cuda")
    for _ in range(200):
        x = x * 1.0 + 1.0
    taken = Snapshot(x)
    x.zero_()
    del x
    torch.zeros(2**22, device="cuda")
    read = taken.read()
    assert read.device.type == "cpu" and read.is_pinned() and (read == 201).all()
