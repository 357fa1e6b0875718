"""Breaks the code on purpose, one small change at a time, and checks that a test notices.

    python tests/mutations/run.py                 # all of tests/mutations/*.yaml
    python tests/mutations/run.py vdm cfg --workers 2

A mutation is {what, file, before, after} and optionally {tests}: in a copy of the repository, the text `before`, which must occur
exactly once in `file`, is replaced by `after`; then pytest runs `tests` (default: those of the losses, of the list's name first, or
those of the folder the file is in) until one fails. A mutation that no test notices survives: the tests have a hole, and this script ends with 1. The table goes to
tests/mutations/results.md, where rows of lists that were not run stay as they were.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEFAULT_TESTS = ROOT / "tests" / "dreammapping" / "distillation"
COPIED = ("custom", "threestudio", "benchmarks", "tabletop", "tests", "configs", "pyproject.toml", "load", "launch.py")
RESULTS = HERE / "results.md"
HEAD = "| list | what is broken | noticed by | seconds |\n| --- | --- | --- | --- |\n"


@dataclass(frozen=True)
class Mutation:
    """One change that must not go unnoticed."""

    group: str
    """Name of the list it comes from."""
    what: str
    file: str
    """Relative to the repository."""
    before: str
    after: str
    tests: tuple[str, ...]
    """Arguments of pytest, relative to the repository."""

    def apply(self, root: Path) -> None:
        """Change the file below `root`. Raises ValueError if `before` does not occur exactly once."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if (found := text.count(self.before)) != 1:
            raise ValueError(f"{self.group}: {self.what!r}: {self.before!r} occurs {found} times in {self.file}")
        path.write_text(text.replace(self.before, self.after), encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    mutation: Mutation
    noticed_by: str | None
    """The first test that failed; None if all passed."""
    seconds: float


def load_mutations(groups: Iterable[str] = ()) -> list[Mutation]:
    """Those of the lists named in `groups` (default: all), in the order of the files."""
    wanted = set(groups)
    files = [f for f in sorted(HERE.glob("*.yaml")) if not wanted or f.stem in wanted]
    if unknown := wanted - {f.stem for f in files}:
        raise SystemExit(f"no list called {', '.join(sorted(unknown))}; there are: {', '.join(f.stem for f in sorted(HERE.glob('*.yaml')))}")
    found = []
    for file in files:
        for entry in OmegaConf.to_container(OmegaConf.load(file)):
            tests = tuple(entry.pop("tests", None) or default_tests(file.stem, entry["file"]))
            found.append(Mutation(group=file.stem, tests=tests, **entry))
    return found


def default_tests(group: str, file: str) -> list[str]:
    """The losses' tests, those named like the list first, as they most likely notice; of another folder's file, that folder's."""
    mirrored = ROOT / "tests" / Path(file).parent.relative_to("custom")
    if "configs" in mirrored.parts:
        return ["tests/dreammapping/test_configs.py"]
    if mirrored not in (DEFAULT_TESTS, ROOT / "tests" / "dreammapping" / "teachers"):
        return [mirrored.relative_to(ROOT).as_posix()]
    own = DEFAULT_TESTS / f"test_{group.replace('-', '_')}.py"
    others = [f for f in sorted(DEFAULT_TESTS.glob("test_*.py")) if f != own]
    return [f.relative_to(ROOT).as_posix() for f in ([own] if own.exists() else []) + others]


def try_out(mutation: Mutation) -> Outcome:
    """Run the tests on a broken copy."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in COPIED:
            source = ROOT / name
            if name == "load":  # large, and never changed
                (copy / name).symlink_to(source, target_is_directory=True)
            elif source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc"))
            else:
                shutil.copy(source, copy / name)
        mutation.apply(copy)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *mutation.tests]
        path = os.pathsep.join(filter(None, (str(copy), str(copy / "custom"), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1, 2):  # 2: the broken code does not even import
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    noticed = None if done.returncode == 0 else (failed.group(1).split("/")[-1] if failed else "import")
    return Outcome(mutation, noticed, time.monotonic() - started)


def row(outcome: Outcome) -> str:
    m = outcome.mutation
    noticed = f"`{outcome.noticed_by}`".replace("|", "\\|") if outcome.noticed_by else "**nothing**"
    return f"| {m.group} | {m.what} | {noticed} | {outcome.seconds:.0f} |"


def write_table(outcomes: list[Outcome]) -> None:
    """Rows of the lists that were run replace their earlier rows."""
    old = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    groups = {o.mutation.group for o in outcomes}
    kept = [line for line in old if re.match(r"\| (?!list |---)", line) and line.split(" | ")[0][2:] not in groups]
    rows = sorted(kept + [row(o) for o in outcomes], key=lambda line: line.split(" | ")[0])
    survived = sum("**nothing**" in r for r in rows)
    text = f"# Mutations\n\n`python tests/mutations/run.py`: {len(rows)} mutations, {survived} of them unnoticed.\n\n{HEAD}" + "\n".join(rows) + "\n"
    RESULTS.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help="lists to run, by name; default: all")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    outcomes = []
    with ThreadPoolExecutor(args.workers) as pool:
        for outcome in pool.map(try_out, load_mutations(args.groups)):
            print(row(outcome), flush=True)
            outcomes.append(outcome)
    write_table(outcomes)
    survivors = [o for o in outcomes if o.noticed_by is None]
    print(f"{len(outcomes)} mutations, {len(survivors)} unnoticed; table: {RESULTS.relative_to(ROOT)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
