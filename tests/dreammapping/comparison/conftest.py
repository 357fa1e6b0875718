"""The helpers beside these tests, and a report of known records."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # worker processes find it, too


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records of a plan, one of them failed and one missing, and the report."""
    import known
    from dreammapping.comparison.plan import runs
    from dreammapping.comparison.report import write_report
    from dreammapping.comparison.runner import Limits, work, write_record

    folder = tmp_path_factory.mktemp("known")
    plan = known.plan_of(folder, representations=["gs", "2d"], prompts_per_run=2, particles=2)
    found = runs(plan)
    for run in found[:-2]:
        work(run.job, folder, known.CRAFT, Limits(workers=3))
    write_record(folder, found[-2].job, {"failure": "loss is NaN at step 7 <b>"})
    write_report(folder, known.report_of(plan, folder))
    return folder
