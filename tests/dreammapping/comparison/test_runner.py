"""Many runs at once: what is made, what is kept, what happens to those that fail or die."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import quick
from dreammapping.comparison.runner import Craft, Job, Limits, finished, read_record, record_of, run_all, work, write_record

ROOT = Path(__file__).resolve().parents[3]
CRAFT = quick.CRAFT


def job(seed: int, *more: str) -> Job:
    return Job(f"run.{seed}", (f"seed={seed}", *more), {"seed": seed})


def made(output: Path) -> list[str]:
    return sorted((output / "made").read_text().split()) if (output / "made").exists() else []


def test_all_runs_are_made_once(tmp_path, capsys):
    jobs = [job(i) for i in range(5)]
    run_all(jobs, tmp_path, CRAFT, Limits(workers=2))
    assert made(tmp_path) == [j.name for j in jobs]
    assert capsys.readouterr().out.splitlines()[0] == "5 runs, 5 to do"
    for j in jobs:
        facts = read_record(tmp_path, j)
        assert facts["result"] == facts["seed"] == int((tmp_path / "runs" / f"{j.name}.txt").read_text()) and facts["workers"] == 2
        assert finished(tmp_path, j)
    assert not list((tmp_path / "trials").iterdir())
    run_all(jobs, tmp_path, CRAFT, Limits(workers=2))
    assert len(made(tmp_path)) == 5 and capsys.readouterr().out == "5 runs, 0 to do\n"


def test_a_record_counts_only_for_the_arguments_it_was_made_with(tmp_path):
    assert not finished(tmp_path, job(1))
    write_record(tmp_path, job(1), {"seconds": 1.0})
    assert finished(tmp_path, job(1)) and not finished(tmp_path, Job("run.1", ("seed=1", "more=2")))
    write_record(tmp_path, job(1), {"failure": "no"})
    assert not finished(tmp_path, job(1)) and read_record(tmp_path, job(1))["failure"] == "no"
    record_of(tmp_path, job(1)).write_text('{"arguments": [')  # cut off
    assert read_record(tmp_path, job(1)) is None


@pytest.mark.parametrize(("do", "why"), [("fail", "it did not work"), ("raise", "RuntimeError: out of luck")])
def test_a_run_that_fails_says_why_and_keeps_its_folder_and_log(tmp_path, capfd, do, why):
    facts = work(job(1, f"do={do}"), tmp_path, CRAFT, Limits())
    assert facts["failure"] == why and json.loads(record_of(tmp_path, job(1)).read_text()) == facts
    assert (tmp_path / "trials" / "run.1" / "run" / "result").exists()
    assert ("out of luck" in (tmp_path / "trials" / "run.1.log").read_text()) == (do == "raise")
    assert "out of luck" not in capfd.readouterr().err  # it went to the log
    os.write(1, b"back")
    assert capfd.readouterr().out == "back"


def test_a_run_whose_result_cannot_be_used_has_failed(tmp_path):
    craft = Craft(lambda job, run, record: {"x": run.joinpath("missing").read_text()}, train=quick.train)
    assert work(job(1), tmp_path, craft, Limits())["failure"].startswith("FileNotFoundError")


def test_what_an_interrupted_run_left_is_removed_and_a_finished_folder_kept_if_wanted(tmp_path):
    stale = tmp_path / "trials" / "run.1" / "run"
    stale.mkdir(parents=True)
    stale.joinpath("stale").touch()
    assert "failure" not in work(job(1), tmp_path, CRAFT, Limits(keep_trials=True))
    assert [f.name for f in stale.iterdir()] == ["result"]


def test_failures_come_again_after_all_others(tmp_path, capsys):
    jobs = [job(i) for i in range(4)]
    write_record(tmp_path, jobs[0], {"failure": "no"})
    run_all(jobs, tmp_path, CRAFT, Limits())
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "4 runs, 4 to do, 1 of them again after a failure"
    assert [line.split()[0] for line in out[1:]] == ["run.1", "run.2", "run.3", "run.0"]


def test_only_the_run_whose_process_died_has_died(tmp_path):
    jobs = [job(0, "do=die"), job(1), job(2), job(3, "do=die-once")]
    run_all(jobs, tmp_path, CRAFT, Limits(workers=2))
    assert "died" in read_record(tmp_path, jobs[0])["failure"]
    assert made(tmp_path) == ["run.1", "run.2", "run.3"]


def test_workers_that_cannot_begin_are_reported(tmp_path, capsys):
    jobs = [job(i) for i in range(2)]
    run_all(jobs, tmp_path, replace(quick.CRAFT, begin=quick.begin_and_die), Limits(workers=2))
    assert all("died" in read_record(tmp_path, j)["failure"] for j in jobs)
    assert capsys.readouterr().out.count("died") == 2


def test_no_run_is_started_when_the_time_is_up_and_those_going_on_are_given_up(tmp_path):
    run_all([job(1)], tmp_path, CRAFT, Limits(minutes=0))
    assert not (tmp_path / "runs").exists()
    jobs = [job(1), job(2, "do=wait"), job(3)]
    run_all(jobs, tmp_path, CRAFT, Limits(workers=1, minutes=0.08, grace=0.0))
    assert (tmp_path / "trials" / "run.2" / "run" / "result").exists()  # it was going on
    assert read_record(tmp_path, jobs[1]) is None and read_record(tmp_path, jobs[2]) is None


def test_launch_is_called_with_where_the_run_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = Job("a", ("--config", "custom/dreammapping/configs/vdm-gs.yaml", "--train", "--preset", "embedded", "system.geometry.init.nonsense=1"))
    facts = work(wrong, tmp_path, Craft(quick.harvest), Limits())
    assert facts["failure"].startswith("system.geometry.init.nonsense is not a known key")
    assert (tmp_path / "trials" / "a" / "run" / "cmd.txt").exists()
    assert work(Job("b", ("--nonsense",)), tmp_path, Craft(quick.harvest), Limits())["failure"]


def test_workers_share_the_visible_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
    jobs = [job(i, "seconds=0.2") for i in range(8)]
    run_all(jobs, tmp_path, CRAFT, Limits(workers=4))
    seen = dict(line.split() for line in (tmp_path / "seen").read_text().splitlines())
    assert sorted(seen.values()) == ["3", "3", "5", "5"]  # by process


def test_without_gpus_workers_are_told_of_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run_all([job(1)], tmp_path, CRAFT, Limits(workers=2))
    assert (tmp_path / "seen").read_text().split()[1:] == ["-"]


def test_workers_that_are_started_afresh_make_runs_too(tmp_path):
    run_all([job(1)], tmp_path, replace(CRAFT, start="spawn"), Limits())
    assert made(tmp_path) == ["run.1"]
