"""Two processes (gloo, CPU) make one asset: that of one process with the same views, alike on both, and resumable."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
import small_run  # noqa: E402
import two_processes  # noqa: E402
from tiny_teacher import make_tiny_teacher  # noqa: E402

import launch  # noqa: E402

STEPS, EVERY = 6, 3  # Gaussians are added at steps 2 and 4
TOGETHER = ("trainer.devices=2",)
HALF = f"at-step={EVERY}.ckpt"


def arguments(teacher: Path, outputs: Path, name: str, *more: str) -> list[str]:
    overrides = small_run.overrides(teacher, outputs, STEPS, EVERY, name)
    return ["--config", str(small_run.CONFIG), "--train", "--preset", "paper", *overrides, "data.batch_size=4", *more]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What both processes found, and the folder of their runs; `resumed` starts from the whole's first checkpoint."""
    folder = tmp_path_factory.mktemp("together")
    teacher = make_tiny_teacher(folder / "teacher")
    quick = ("system.report=false", "data.n_test_views=2")
    mcmc = ("system.geometry.densification.type=mcmc", "trainer.max_steps=3", *quick)
    runs = [
        arguments(teacher, folder, "whole", *TOGETHER),
        arguments(teacher, folder, "mcmc", *TOGETHER, *mcmc),
        arguments(teacher, folder, "resumed", *TOGETHER, *quick, f"resume={checkpoint(folder, 'whole', HALF)}"),
    ]
    runs[0] += ["checkpoint.save_top_k=-1", "checkpoint.filename=at-{step}"]
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    worker = [sys.executable, str(Path(two_processes.__file__))]
    processes = [
        subprocess.Popen([*worker, str(rank), str(folder)], cwd=small_run.ROOT, env=small_run.environment(),
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    found = [torch.load(folder / f"shares-{rank}.pt", weights_only=True) for rank in (0, 1)]
    return SimpleNamespace(folder=folder, teacher=teacher, found=found)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def checkpoint(folder: Path, name: str, file: str = "last.ckpt") -> Path:
    return folder / name / "small" / "ckpts" / file


@pytest.mark.parametrize("case", two_processes.CASES)
def test_the_shares_together_are_what_one_process_has(together: SimpleNamespace, case: str):
    alone = two_processes.CASES[case]()
    first, second = (found["shares"][case] for found in together.found)
    for name, whole in alone.items():
        joined = torch.cat([first[name], second[name]])
        # A bias before a normalization has no gradient but rounding, of which Adam makes steps.
        atol = 1e-7 if name == "learned" else 1e-12
        torch.testing.assert_close(joined, whole, rtol=1e-9, atol=atol, msg=lambda text: f"{name}: {text}")


def test_messages(together: SimpleNamespace):
    for messages in (found["messages"] for found in together.found):
        assert messages["alike"] == messages["start"] == messages["apart"] == ""
        for name in ("bits", "places", "sizes"):
            assert "no longer the same on all processes" in messages[name]
        assert "[3], [4]" in messages["sizes"]
        assert "load_splat" in messages["differ"]
        assert "data.batch_size is 3, which 2 processes cannot share evenly" in messages["odd"]


@pytest.mark.parametrize("start", ["alone", "taken over"])
def test_one_process_makes_the_same_asset(together: SimpleNamespace, start: str):
    """From the beginning, or from the two's first checkpoint. Up to the order of sums in float32, which Adam can turn
    into a different step where a gradient is nearly zero."""
    name = start.replace(" ", "-")
    resume = [f"resume={checkpoint(together.folder, 'whole', HALF)}"] if start != "alone" else []
    assert launch.main(arguments(together.teacher, together.folder, name, *resume)) == 0
    alone, both = (torch.load(checkpoint(together.folder, run), weights_only=True) for run in (name, "whole"))
    prefix = "geometry."
    names = [name for name in alone["state_dict"] if name.startswith(prefix) and "extra_state" not in name]
    assert len(alone["state_dict"]["geometry.gaussians.params.means"]) > 60
    for name in names:
        one, two = alone["state_dict"][name], both["state_dict"][name]
        torch.testing.assert_close(two, one, rtol=2e-4, atol=2e-5, msg=lambda text: f"{name}: {text}")
    assert torch.equal(alone["state_dict"]["geometry.densification._extra_state"]["generator"],
                       both["state_dict"]["geometry.densification._extra_state"]["generator"])  # fmt: skip


def test_resuming_equals_never_stopping(together: SimpleNamespace):
    first, second = checkpoint(together.folder, "whole"), checkpoint(together.folder, "resumed")
    assert small_run.differences(first, second) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking")
def test_both_end_when_the_first_is_told_to(together: SimpleNamespace):
    endless = arguments(together.teacher, together.folder, "endless", *TOGETHER, "trainer.max_steps=1000000")
    process = subprocess.Popen([sys.executable, "launch.py", *endless], cwd=small_run.ROOT, env=small_run.environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not checkpoint(together.folder, "endless").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.terminate()
        output, _ = process.communicate(timeout=60)  # until the other, which writes to the same pipe, has ended as well
    finally:
        process.kill()
    assert "was told to end (SIGTERM)" in output
    torch.load(checkpoint(together.folder, "endless"), weights_only=True)


def test_one_process_writes_and_no_view_is_missing(together: SimpleNamespace):
    save = together.folder / "whole" / "small" / "save"
    assert len(list((save / f"it{STEPS}-test").glob("*.png"))) == 9
    assert (save / "contact_sheet.png").is_file() and (save / f"it{STEPS}-export" / "gaussians.ply").is_file()
    assert json.loads((save / "model_card.json").read_text())["status"] == "trained"
