"""Compare losses: make all runs of a plan, then one report of them.

    python -m custom.dreammapping.comparison --plan embedded-2d --output outputs/comparison/2d --workers 4
    python -m custom.dreammapping.comparison --plan embedded-2d --output outputs/comparison/2d --report

The command may be killed at any moment and given again: finished runs are not made again, and the report is the same. docs/comparison.md has
the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ..errors import ConfigError
from ..evaluation.protocol import Protocol, load_protocol
from . import records
from .choose import write_choices
from .look import load_look
from .plan import Plan, Run, load_plan, plan_name, runs
from .references import teacher_assets
from .report import write_report
from .report.content import Report
from .runner import Craft, Limits, run_all
from .scores import collect, metrics, summarize


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m custom.dreammapping.comparison", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--plan", required=True, help="a YAML file, or the name of one in comparison/plans")
    result.add_argument("--output", type=Path, required=True, help="folder of the records and the report")
    result.add_argument("--workers", type=int, default=1, help="runs at once")
    result.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    result.add_argument("--grace", type=float, default=float("inf"), help="seconds after which runs still going on then are given up")
    result.add_argument("--keep-trials", action="store_true", help="keep the whole folders of the runs")
    what = result.add_mutually_exclusive_group()
    what.add_argument("--report", action="store_true", help="only make the report of what is there")
    what.add_argument("--no-report", action="store_true", help="only make the runs; the report can be made elsewhere")
    result.add_argument("--list", action="store_true", help="only say which runs there would be")
    result.add_argument("--choose", type=Path, metavar="FILE", help="write each loss's best variant into FILE, for the key `choices` of other plans")
    result.add_argument("--by", default="clip.judge", metavar="METRIC", help="by which --choose chooses; default: clip.judge")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0 done, 2 a mistake that the message explains, 130 interrupted."""
    args = parser().parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers
    try:
        compare(args)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on.", file=sys.stderr)
        return 130
    except Exception as problem:
        if not getattr(problem, "is_user_error", False):
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def compare(args: argparse.Namespace) -> None:
    """Everything the arguments ask for."""
    if args.no_report and args.choose:
        raise ConfigError("--choose takes what the report says, so it cannot be asked for with --no-report")
    plan = load_plan(args.plan)
    protocol = load_protocol(plan.protocol)
    wanted = planned(plan, protocol)
    if args.list:
        print("\n".join(run.job.name for run in wanted))
        return
    output = args.output.resolve()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    look = load_look(protocol, device)  # what is missing is found before anything runs
    if not args.report:
        craft = Craft(records.harvest, partial(records.begin, protocol))
        run_all([run.job for run in wanted], output, craft, Limits(args.workers, args.minutes, args.grace, args.keep_trials))
    if args.no_report:
        return
    results = collect(output, wanted, look)
    drawn = teacher_assets([p for p in plan.prompts if any(asset.prompt == p for asset in results.assets)], look, device)
    told = {key: value for key, value in dataclasses.asdict(protocol).items() if key not in ("prompts", "seeds")}  # the plan's count
    command = f"python -m custom.dreammapping.comparison --plan {plan_name(args.plan)} --output OUTPUT"
    report = Report(plan, told, results, summarize(plan, results, look, drawn), metrics(look), output, command)
    for path in write_report(output, report):
        print(path)
    if args.choose:
        write_choices(args.choose, plan, report.rows, results.assets, args.by)


def planned(plan: Plan, protocol: Protocol) -> list[Run]:
    """The plan's runs, which show their objects as the protocol says; pictures have the teacher's size and no views."""
    of = {kind: [*(protocol.overrides() if kind != "2d" else []), *plan.of.get(kind, [])] for kind in plan.representations}
    return runs(dataclasses.replace(plan, of=of))


if __name__ == "__main__":
    sys.exit(main())
