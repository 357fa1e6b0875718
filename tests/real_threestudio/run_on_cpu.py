"""Runs a script of a threestudio checkout on a CPU, with stand-ins for what only exists for CUDA.

    python run_on_cpu.py launch.py --config ... --train ...

The current folder must be the checkout. Its files stay as they are; changed is what they find around them:

- tinycudann and nerfacc are those in `stand_ins/`; other packages that are not installed can be imported, but their
  contents raise when they are used (`absent.py`);
- `get_device()` answers cpu, the Trainer's accelerator is cpu, and `torch.cuda.device(...)` does nothing.

All of it happens while this module is imported, so that child processes that threestudio starts get it too.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(Path.cwd()), str(HERE / "stand_ins")]

import absent  # noqa: E402
import pytorch_lightning  # noqa: E402
import torch  # noqa: E402


class AfterImport:
    """A finder that lets the usual ones find a module, and then changes the module once it has been executed."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self.changes = changes

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_change(module: ModuleType) -> None:
                execute(module)
                self.changes[name](module)

            spec.loader.exec_module = execute_and_change
        return spec


def on_cpu(misc: ModuleType) -> None:
    """threestudio.utils.misc"""
    if not Path(misc.__file__).is_relative_to(Path.cwd()):
        raise SystemExit(f"threestudio was imported from {misc.__file__}, not from the checkout in {Path.cwd()}")
    misc.get_device = lambda: torch.device("cpu")


def rank_is_a_device(networks: ModuleType) -> None:
    """threestudio.models.networks passes the rank where a device is meant."""
    networks.get_rank = lambda: "cpu"


class CpuTrainer(pytorch_lightning.Trainer):
    def __init__(self, *args: object, accelerator: str = "gpu", devices: int = -1, **kwargs: object) -> None:
        super().__init__(*args, accelerator="cpu", devices=1, **kwargs)


absent.install()
sys.meta_path.insert(
    0, AfterImport({"threestudio.utils.misc": on_cpu, "threestudio.models.networks": rank_is_a_device})
)
pytorch_lightning.Trainer = CpuTrainer
torch.cuda.device = lambda *_: contextlib.nullcontext()

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    # In this module's own namespace, so that a child process finds this file as its parent's main module.
    exec(compile(Path(sys.argv[0]).read_text(encoding="utf-8"), sys.argv[0], "exec"))
