"""Killed ten times at random and given again: the same report, and no run is made twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import known
import pytest
from dreammapping.comparison.plan import Plan, runs
from dreammapping.comparison.report import write_report
from dreammapping.comparison.runner import Limits, run_all

KILLS, WORKERS = 10, 3
FILES = ("report.html", "report.md", "report.json", "assets.csv")


def compare(plan: Plan, output: Path) -> None:
    os.setsid()
    run_all([run.job for run in runs(plan)], output, known.CRAFT, Limits(workers=WORKERS))


def in_another_process(plan: Plan, output: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=compare, args=(plan, output))
    process.start()
    return process


def end_of(group: int) -> bool:
    """Whether no process of a session is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def end_within(seconds: float, group: int) -> bool:
    """Whether all processes of a session end by themselves in time; none is left in any case."""
    deadline = time.monotonic() + seconds
    while not end_of(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended := end_of(group):
        return ended
    os.killpg(group, signal.SIGKILL)
    return False


def made(output: Path) -> Counter[str]:
    return Counter((output / "made").read_text().split()) if (output / "made").exists() else Counter()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes as POSIX does")
def test_killed_ten_times_and_resumed(tmp_path):
    rng = random.Random(0)
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    broken.mkdir(), whole.mkdir()
    plan = known.plan_of(tmp_path, overrides=["seconds=0.3"], seeds=[0, 1, 2, 3])
    wanted = [run.job.name for run in runs(plan)]
    finished_before: set[str] = set()
    for _ in range(KILLS):
        process = in_another_process(plan, broken)
        time.sleep(rng.uniform(0.05, 1.0))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert end_within(20, process.pid)  # its workers follow it
        done = {path.stem for path in (broken / "runs").glob("*.json")} if (broken / "runs").exists() else set()
        assert finished_before <= done
        assert all(made(broken)[name] >= 1 for name in done)
        finished_before = done
    counts = made(broken)
    process = in_another_process(plan, broken)
    process.join(60)
    assert process.exitcode == 0
    last = made(broken)
    assert all(last[name] == counts[name] for name in finished_before)  # what was finished was not made again
    assert all(last[name] >= 1 for name in wanted) and sum(last.values()) <= len(wanted) + KILLS * WORKERS
    process = in_another_process(plan, whole)
    process.join(60)
    assert made(whole) == Counter(wanted)
    for output in (broken, whole):
        write_report(output, known.report_of(plan, output))
    for file in FILES:
        assert (broken / file).read_bytes() == (whole / file).read_bytes()
