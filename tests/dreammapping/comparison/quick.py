"""Runs that take no time, for tests of the runner: they are called by name in other processes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from dreammapping.comparison.runner import Craft, Job
from dreammapping.files import write_atomic


def value_of(arguments: list[str] | tuple[str, ...], name: str) -> str | None:
    """Of an override name=value."""
    return next((a.split("=", 1)[1] for a in arguments if a.startswith(f"{name}=")), None)


def train(arguments: list[str]) -> str | None:
    """Writes pid and moment into the run's folder; `do` says what else happens."""
    folder = Path(value_of(arguments, "exp_root_dir") or "", value_of(arguments, "name") or "", "run")
    folder.mkdir(parents=True)
    folder.joinpath("result").write_text(value_of(arguments, "seed") or "")
    match value_of(arguments, "do"):
        case "fail":
            return "it did not work"
        case "raise":
            raise RuntimeError("out of luck")
        case "die":
            os._exit(3)
        case "die-once":
            mark = folder.parents[2] / "died"
            if not mark.exists():
                mark.touch()
                os._exit(3)
        case "wait":
            time.sleep(60)
    print("noise of the run")
    time.sleep(random.uniform(0.0, float(value_of(arguments, "seconds") or 0.0)))
    return None


def harvest(job: Job, run: Path, record: Path) -> dict[str, Any]:
    """The number the run wrote, and a note in OUTPUT/made that it was made: one line for each time."""
    write_atomic(Path(f"{record}.txt"), run.joinpath("result").read_bytes())
    with open(record.parents[1] / "made", "a", encoding="utf-8") as file:  # one write: whole lines from all processes
        file.write(f"{job.name}\n")
    with open(record.parents[1] / "seen", "a", encoding="utf-8") as file:  # what GPU a process sees
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES') or '-'}\n")
    return {"result": int(run.joinpath("result").read_text())}


def begin_and_die() -> None:
    os._exit(4)


CRAFT = Craft(harvest, train=train, start="fork" if hasattr(os, "fork") else "spawn")
