"""The command: what is made and what is left."""

from __future__ import annotations

import pytest
from dreammapping.comparison import __main__ as command

PLAN = """
title: Small
preset: embedded
representations: [2d]
methods: [sds]
prompts: [a red mug]
seeds: [0]
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "small.yaml").write_text(PLAN)
    return str(tmp_path / "small.yaml")


@pytest.mark.parametrize("more", [[], ["--no-report"]])
def test_the_report_can_be_left_to_another_call(tmp_path, plan, monkeypatch, more):
    made, written = [], []
    monkeypatch.setattr(command, "run_all", lambda jobs, output, craft, limits: made.extend(jobs))
    monkeypatch.setattr(command, "write_report", lambda output, report: written.append(report) or [])
    monkeypatch.setattr(command, "teacher_assets", lambda *_: [])
    assert command.main(["--plan", plan, "--output", str(tmp_path), *more]) == 0
    assert len(made) == 1 and len(written) == (0 if more else 1)


def test_choosing_needs_the_report(tmp_path, plan, capsys):
    assert command.main(["--plan", plan, "--output", str(tmp_path), "--no-report", "--choose", str(tmp_path / "chosen.yaml")]) == 2
    assert "--choose" in capsys.readouterr().err and not (tmp_path / "chosen.yaml").exists()
