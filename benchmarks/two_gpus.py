"""One asset on one GPU and on two: milliseconds per iteration, and whether they make the same Gaussians.

    python benchmarks/two_gpus.py             # two CUDA GPUs: the paper's sizes, random weights of SD 2.1-base's shapes
    python benchmarks/two_gpus.py --quick
    python benchmarks/two_gpus.py --compiled  # the U-Net compiled, as one would have it for a long run
    python benchmarks/two_gpus.py --tiny      # two CPU processes and a miniature teacher, to see that everything runs

Each of the three trainings starts from the same Gaussians and sees the same views: twice on one GPU (how far apart two
equal runs end, because kernels add in any order, is the yardstick), once on two. Compared are the first step's gradients
and how far each parameter has moved just before Gaussians are first added, as relative differences; and their number at the
end. Adam makes a whole step of a gradient however small, so the movement differs by more than the gradient. The training is
the product's own: the system in Lightning's Trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import pytorch_lightning as pl  # noqa: E402
from benchmarks.stepping import COMPILED, alone, random_sd21, tiny_teacher  # noqa: E402

LOOK = 10
"""Steps after which the Gaussians are compared; the first are added in the step after."""
COMPARED = ("gradients", "moved")
"""What one training's results say of each parameter."""


class Watch(pl.Callback):
    """Times between the beginnings of steps, the first gradients, and the Gaussians after `LOOK` steps."""

    def __init__(self) -> None:
        self.marks: list[Any] = []
        self.counts: list[int] = []
        self.start: dict[str, torch.Tensor] = {}
        self.moved: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, system: Any, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = exact({name: p.grad for name, p in system.geometry.gaussians.params.items() if p.grad is not None})

    def on_train_batch_start(self, trainer: Any, system: Any, batch: Any, index: int) -> None:
        if index == 0:
            self.start = exact(system.geometry.gaussians.params)
        if index == LOOK:
            now = exact(system.geometry.gaussians.params)
            self.moved = {name: value - self.start[name] for name, value in now.items()}
        self.marks.append(mark(system.device))
        self.counts.append(system.geometry.count)

    def milliseconds(self) -> list[float]:
        """Of the steps in which no Gaussians were added, without the first ones."""
        if not isinstance(self.marks[0], float):
            torch.cuda.synchronize()
        steps = zip(self.marks, self.marks[1:], self.counts, self.counts[1:])
        found = [1e3 * (b - a) if isinstance(a, float) else a.elapsed_time(b) for a, b, n, m in steps if n == m]
        return found[5:]


def exact(tensors: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().double().cpu().clone() for name, value in tensors.items()}


def mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


# ---- one process ----


def train(folder: Path, processes: int, options: argparse.Namespace) -> None:
    """One training as rank LOCAL_RANK of `processes`; rank 0 writes its result beside the teacher in `folder`."""
    import dreammapping  # noqa: F401  registers its classes
    import threestudio
    from threestudio.utils.config import load_config
    from threestudio.utils.misc import set_device
    from threestudio.utils.processes import strategy_for

    tiny = options.tiny
    if tiny:
        set_device("cpu")
    meet(processes, tiny)
    own = overrides(folder, tiny) + ([COMPILED] if options.compiled else [])
    config = load_config(ROOT / "custom" / "dreammapping" / "configs" / "vdm-gs.yaml", cli_args=own)
    pl.seed_everything(config.seed)
    system = threestudio.find(config.system_type)(config.system)
    system.set_save_dir(str(folder / "save"))
    watch = Watch()
    settings: dict[str, Any] = {"accelerator": "cpu" if tiny else "gpu", "devices": processes}
    trainer = pl.Trainer(
        **settings, strategy=strategy_for(system, settings), max_steps=options.steps, callbacks=[watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    begin = time.perf_counter()
    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings("always", message=".*CUDA graph")
        trainer.fit(system, datamodule=threestudio.find(config.data_type)(config.data))
    if trainer.is_global_zero:
        result = {"milliseconds": watch.milliseconds(), "count": system.geometry.count}
        result |= {"gradients": watch.gradients, "moved": watch.moved}
        result["not recorded"] = [text for text in (str(warning.message) for warning in seen) if "CUDA graph" in text]
        result |= {"seconds": time.perf_counter() - begin, "summing_ms": summing(trainer)}
        torch.save(result, folder / f"{options.name}.pt")
    elif processes > 1:
        summing(trainer)


def meet(processes: int, tiny: bool) -> None:
    """Before anything is built: the first process encodes the prompt, for which the others wait. Lightning's own
    launcher starts them when that is done."""
    if processes == 1:
        return
    if not tiny:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("gloo" if tiny else "nccl")


def summing(trainer: Any) -> float | None:
    """Milliseconds to add up the gradients of 50,000 Gaussians over all processes; None for a single one."""
    from dreammapping.processes import average_over_processes, together

    if not together():
        return None
    device = trainer.strategy.root_device
    gradients = [torch.zeros(50_000, width, device=device) for width in (3, 3, 4, 1, 3)]
    times = []
    for _ in range(20):
        begin = mark(device)
        average_over_processes(gradients)
        end = mark(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (end - begin) if isinstance(begin, float) else begin.elapsed_time(end))
    return statistics.median(times)


def overrides(folder: Path, tiny: bool) -> list[str]:
    """The paper's setting from a sphere, with Gaussians added at steps 10, 20, ..."""
    small = ["data.height=32", "data.width=32", "system.geometry.init.num_points=200"] if tiny else []
    densification = {"refine_start_iter": LOOK - 1, "refine_every": 10, "grow_grad2d": 0.00001, "cap_max": 60_000}
    return [
        "use_timestamp=false", "system.report=false", "data.n_val_views=1",
        f"system.prompt_processor.pretrained_model_name_or_path={folder / 'teacher'}",
        "system.prompt_processor.spawn=false", "system.geometry.init.type=sphere",
        *(f"system.geometry.densification.{key}={value}" for key, value in densification.items()), *small,
    ]  # fmt: skip


# ---- all processes ----


def launch(folder: Path, processes: int, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run `train` in so many processes; what rank 0 wrote, or the error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--as-rank-of", str(processes), "--name", name, "--folder", str(folder)]
    command += ["--steps", str(options.steps)]
    command += [f"--{flag}" for flag in ("tiny", "compiled") if getattr(options, flag)]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "NODE_RANK": "0"}
    ranks = [{"LOCAL_RANK": str(i), "RANK": str(i)} for i in range(processes)] if processes > 1 else [{}]
    log = folder / f"{name}.log"
    with open(log, "w", encoding="utf-8") as stream:
        environments = [{**os.environ, **(shared if rank else {}), **rank} for rank in ranks]
        running = [subprocess.Popen(command, env=env, stdout=stream, stderr=stream) for env in environments]
        deadline = time.monotonic() + options.timeout
        try:
            codes = [process.wait(max(deadline - time.monotonic(), 1)) for process in running]
        except subprocess.TimeoutExpired:
            codes = [f"no end after {options.timeout} s"]
            for process in running:
                process.kill()
    if any(codes):
        tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        return {"error": f"exit {codes}: {tail}"}
    return torch.load(folder / f"{name}.pt", weights_only=True)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """|a - b| / |a| of each parameter's gradient or movement."""
    sizes = {name: float(value.norm()) for name, value in one.items() if value.numel()}
    return {name: float((other[name] - one[name]).norm()) / size for name, size in sizes.items() if size}


def compare(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    runs = {name: {k: v for k, v in run.items() if k not in COMPARED} for name, run in found.items()}
    report: dict[str, Any] = {"runs": runs}
    medians = {name: statistics.median(run["milliseconds"]) for name, run in found.items() if "error" not in run}
    report["median_ms"] = medians
    if "one" in medians:
        others = [name for name in medians if name != "one"]
        for what in COMPARED:
            report[f"{what}, difference to one"] = {name: difference(found["one"][what], found[name][what]) for name in others}
    if {"one", "two"} <= medians.keys():
        report["speed_up"] = medians["one"] / medians["two"]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps, no second run on one GPU")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one training")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/two_gpus.json"))
    parser.add_argument("--as-rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.as_rank_of:
        train(options.folder, options.as_rank_of, options)
        return
    if not options.tiny and torch.cuda.device_count() < 2:
        raise SystemExit(f"two CUDA GPUs are needed, {torch.cuda.device_count()} found; --tiny runs on the CPU")
    options.steps = 25 if options.quick else options.steps
    runs = {"two": 2, "one": 1} if options.quick else {"two": 2, "one": 1, "one again": 1}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, found = Path(scratch), {}
        make, *where = (tiny_teacher,) if options.tiny else (random_sd21, "cuda")
        alone(make, folder / "teacher", *where)
        for name, processes in runs.items():
            found[name] = launch(folder, processes, name, options)
            report = compare(found)
            options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
            print(f"  {name:10}", summary(found[name]), flush=True)
    for key, value in report.items():
        if key != "runs":
            print(f"  {key}: {json.dumps(value)}")
    print(f"raw numbers: {options.output}")


def summary(run: dict[str, Any]) -> str:
    if "error" in run:
        return run["error"][-700:]
    summing_ms = "" if run["summing_ms"] is None else f", of which adding up gradients {run['summing_ms']:.2f}"
    median = statistics.median(run["milliseconds"])
    lines = [f"{median:8.1f} ms{summing_ms}; {run['count']} Gaussians; {run['seconds']:.0f} s", *run["not recorded"]]
    return "; ".join(lines)


if __name__ == "__main__":
    main()
