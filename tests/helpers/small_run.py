"""A whole run of the product, small enough for a test: 32 x 32 pixels, a few Gaussians, a few steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "custom" / "dreammapping" / "configs" / "vdm-gs.yaml"


def overrides(teacher: Path, outputs: Path, steps: int = 8, every: int = 4, name: str = "run") -> list[str]:
    """Dotted overrides. The run's folder is outputs/name/small; Gaussians start in a sphere and are added at every second step."""
    return [
        f"exp_root_dir={outputs}", f"name={name}", "tag=small", "use_timestamp=false", "seed=3",
        "data.height=32", "data.width=32", "data.eval_height=32", "data.eval_width=32", "data.batch_size=2",
        "data.n_val_views=1", "data.n_test_views=9",
        f"system.prompt_processor.pretrained_model_name_or_path={teacher}",
        "system.prompt_processor.prompt=a red striped mug", "system.prompt_processor.spawn=false",
        "system.geometry.init.type=sphere", "system.geometry.init.num_points=60",
        "system.geometry.densification.refine_start_iter=0", "system.geometry.densification.refine_every=2",
        "system.geometry.densification.grow_grad2d=0.0", "system.geometry.densification.cap_max=150",
        f"trainer.max_steps={steps}", f"trainer.val_check_interval={every}", f"checkpoint.every_n_train_steps={every}",
    ]  # fmt: skip


def command(mode: str, config: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), "--config", str(config), mode, "--preset", "paper", *arguments]


def environment() -> dict[str, str]:
    """One thread and no network, so that a test neither disturbs its neighbors nor waits for a hub."""
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | quiet


def launch(mode: str, config: Path, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess:
    """launch.py as a user calls it, from the repository's folder; output as text."""
    return subprocess.run(
        command(mode, config, *arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def differences(first: Path, second: Path) -> list[str]:
    """Dotted names of the entries in which the training states of two checkpoints differ, to the bit.

    Compared are the weights and all other states of modules, the optimizer, the counters and the random numbers.
    Left out are callbacks that name folders.
    """
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in (first, second)]
    for state in states:
        state["random"] = [value for key, value in state["callbacks"].items() if "RandomState" in key]
        assert state["random"], "the checkpoint holds no random numbers"
    found: list[str] = []
    for key in ("state_dict", "optimizer_states", "global_step", "epoch", "random"):
        _compare(states[0][key], states[1][key], key, found)
    return found


def _compare(a: object, b: object, where: str, found: list[str]) -> None:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            found.append(where)
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            _compare(a[key], b[key], f"{where}.{key}", found)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b)):
            _compare(x, y, f"{where}[{index}]", found)
    elif type(a) is not type(b) or a != b:
        found.append(where)
