"""A copy of a threestudio checkout with our extension in its custom/ folder, and how to run something in it."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "THREESTUDIO_CHECKOUT"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NEEDED = ("threestudio", "extern", "configs", "launch.py")
PACKAGES = {
    "cv2": "opencv-python-headless",
    "einops": "einops",
    "typeguard": "typeguard",
    "tensorboardX": "tensorboardX",
}


def missing() -> str | None:
    """Why nothing can be run; None if it can."""
    if not os.environ.get(VARIABLE):
        return f"{VARIABLE} names no checkout of github.com/threestudio-project/threestudio"
    absent = [name for name in NEEDED if not Path(os.environ[VARIABLE], name).exists()]
    if absent:
        return f"{VARIABLE}={os.environ[VARIABLE]} is no checkout of threestudio: it has no {', '.join(absent)}"
    packages = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    return f"threestudio needs more packages: pip install {' '.join(packages)}" if packages else None


def copy_to(folder: Path) -> Path:
    """The parts of the checkout that a run needs, and custom/dreammapping as it is here."""
    source = Path(os.environ[VARIABLE])
    for name in NEEDED:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, folder / name)
    # With __pycache__, where numba keeps the rasterizer's machine code.
    shutil.copytree(ROOT / "custom" / "dreammapping", folder / "custom" / "dreammapping")
    return folder


def run(checkout: Path, script: str | Path, *arguments: str) -> str:
    """Run a script in the checkout on the CPU, one thread, no network; its output. Fails if it does."""
    quiet = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "run_on_cpu.py"), str(script), *arguments],
        cwd=checkout,
        env=os.environ | quiet,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout + done.stderr


def train(checkout: Path, config: str, *overrides: str) -> str:
    # `--gpu ""` keeps launch.py from making a GPU visible.
    return run(checkout, "launch.py", "--gpu", "", "--config", config, "--train", *overrides)


def logged(run_folder: Path, name: str, version: int = 0) -> list[float]:
    """The values of a scalar in the CSV log, in the order of the steps. Each resumption begins a new version."""
    return [float(row[name]) for row in _rows(run_folder, version) if row.get(name)]


def losses(run_folder: Path) -> dict[str, list[float]]:
    """All scalars that are losses, of the first version of the CSV log."""
    names = [name for name in _rows(run_folder, 0)[0] if name.startswith("train/loss")]
    return {name: logged(run_folder, name) for name in names}


def _rows(run_folder: Path, version: int) -> list[dict[str, str]]:
    with (run_folder / "csv_logs" / f"version_{version}" / "metrics.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def all_finite(values: dict[str, list[float]]) -> bool:
    return bool(values) and all(series and all(map(math.isfinite, series)) for series in values.values())
