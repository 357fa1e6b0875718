"""What every training stage shares: schedule, moving average, checkpoints that survive a kill, a wall-clock limit.

A stage is a loop over steps that can be stopped at any moment and continued by the same command.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import processes


@dataclass
class LoopSettings:
    """One training stage."""

    steps: int
    """Optimizer steps in the whole stage, over all runs of the command."""
    minutes: float
    """Wall-clock limit of this run. The checkpoint written at its end is where the next run starts."""
    learning_rate: float
    warmup: int = 300
    """Steps of linear warm-up; afterwards a cosine to zero at `steps`."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which is what gets exported."""
    total_minutes: float | None = None
    """Length of the stage by the clock, over all runs; replaces `steps` when given, so that the schedule fits any speed."""
    report_every: int = 200
    save_every: int = 2000


def add_loop_arguments(parser: argparse.ArgumentParser, *, steps: int, learning_rate: float, batch: int) -> None:
    """Command-line options that all stages take."""
    parser.add_argument("--data", type=Path, required=True, help="folder written by tabletop.make_data")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint; an existing one is continued")
    parser.add_argument("--steps", type=int, default=steps, help="steps of the whole stage")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop this run after so many minutes; run again to go on")
    parser.add_argument("--total-minutes", type=float, help="length of the stage by the clock, over all runs, instead of --steps")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (short trials, CPUs)")


def default_device() -> torch.device:
    """The current CUDA device, which `processes.join` chooses, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def training_device() -> torch.device:
    """The default device, with the fast float32 products and the measured convolutions that training can take."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return default_device()


def settings_from(args: argparse.Namespace, **changes: float) -> LoopSettings:
    """The settings that the common command-line options describe."""
    return LoopSettings(args.steps, args.minutes, args.learning_rate, total_minutes=args.total_minutes, **changes)


def cosine_with_warmup(step: int, progress: float, warmup: int) -> float:
    """Factor on the peak learning rate, in [0, 1]: linear over the first steps, then a half cosine over `progress` in [0, 1]."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class MovingAverage:
    """Exponential moving average of parameters, warmed up so that early steps do not linger."""

    parameters: list[Tensor]
    decay: float
    average: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.average = [p.detach().clone() for p in self.parameters]

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)


def load_average(module: nn.Module, folder: Path, name: str) -> nn.Module:
    """`module` with the averaged weights that a stage's checkpoint in `folder` keeps for it under `name`."""
    weights = load_file(folder / "weights.safetensors")
    module.load_state_dict({key: weights[f"average.{name}.{key}"] for key, _ in module.named_parameters()}, strict=False)
    return module


class Stage:
    """Modules under training with their optimizer, average and checkpoint folder."""

    def __init__(self, modules: dict[str, nn.Module], settings: LoopSettings, folder: Path, *, weight_decay: float = 0.01):
        self.modules, self.settings, self.folder = modules, settings, folder
        self.named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
        parameters = list(self.named.values())
        fused = parameters[0].is_cuda
        self.optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused)
        self.average = MovingAverage(parameters, settings.ema_decay)
        self.step, self.seconds = 0, 0.0
        self._load()
        processes.share([p.data for p in parameters] + self.average.average)

    def _load(self) -> None:
        state = self.folder / "state.json"
        if not state.exists():
            return
        progress = json.loads(state.read_text())
        self.step, self.seconds = progress["step"], progress["seconds"]
        weights = load_file(self.folder / "weights.safetensors")
        moments_file = self.folder / "moments.safetensors"
        moments = load_file(moments_file) if moments_file.exists() else {}
        for (name, parameter), average in zip(self.named.items(), self.average.average):
            parameter.data.copy_(weights[f"weights.{name}"])
            average.copy_(weights[f"average.{name}"])
            if f"exp_avg.{name}" in moments:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step), device=parameter.device if parameter.is_cuda else None),
                    "exp_avg": moments[f"exp_avg.{name}"].to(parameter),
                    "exp_avg_sq": moments[f"exp_avg_sq.{name}"].to(parameter),
                }
        print(f"continuing {self.folder} at step {self.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint; each file is replaced in one move, so a kill leaves the previous one."""
        if not processes.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        weights, moments = {}, {}
        for (name, parameter), average in zip(self.named.items(), self.average.average):
            weights[f"weights.{name}"] = parameter.detach().cpu().contiguous()
            weights[f"average.{name}"] = average.cpu().contiguous()
            state = self.optimizer.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    moments[f"{key}.{name}"] = state[key].cpu().contiguous()
        for file, tensors in (("weights", weights), ("moments", moments)):
            save_file(tensors, self.folder / f"{file}.part")
            os.replace(self.folder / f"{file}.part", self.folder / f"{file}.safetensors")
        part = self.folder / "state.part"
        part.write_text(json.dumps({"step": self.step, "seconds": self.seconds}))
        os.replace(part, self.folder / "state.json")

    def use_average(self) -> None:
        """Put the averaged weights into the modules (for export and evaluation)."""
        for parameter, average in zip(self.named.values(), self.average.average):
            parameter.data.copy_(average)

    def run(self, loss_of: Callable[[int], Tensor], *, clip: float = 1.0) -> bool:
        """Train until the stage is complete (True) or this run's minutes are over (False)."""
        started = last = time.monotonic()
        reported = (started, self.step)
        parameters = list(self.named.values())
        running = None
        progress = self._progress()
        while progress < 1.0:
            rate = self.settings.learning_rate * cosine_with_warmup(self.step, progress, self.settings.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(self.step)
            loss.backward()
            processes.average([p.grad for p in parameters if p.grad is not None])
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.average.update(self.step)
            running = loss.detach() if running is None else running.lerp(loss.detach(), 0.02)
            self.step += 1
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            looks = self.step % self.settings.report_every == 0
            if self.settings.total_minutes is None or looks:  # several processes must agree on a clock, which takes an exchange
                progress = self._progress()
            if looks:
                reported = self._report(running, reported, progress)
                if self._agreed(now - started) > 60 * self.settings.minutes:
                    break
            if self.step % self.settings.save_every == 0:
                self.save()
        self.save()
        return progress >= 1.0

    def _progress(self) -> float:
        """Part of the stage that is done, 0 to 1, the same in every process."""
        if self.settings.total_minutes is not None:
            return self._agreed(self.seconds) / (60 * self.settings.total_minutes)
        return self.step / self.settings.steps

    def _agreed(self, seconds: float) -> float:
        """The first process's `seconds`."""
        clock = torch.tensor([seconds], device=next(iter(self.named.values())).device)
        processes.share([clock])
        return clock.item()

    def _report(self, running: Tensor, reported: tuple[float, int], progress: float) -> tuple[float, int]:
        value, now = running.item(), time.monotonic()
        if not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} at step {self.step}; lower --learning-rate and continue from {self.folder}")
        speed = (self.step - reported[1]) / (now - reported[0])
        if processes.is_first():
            print(f"step {self.step} ({progress:.0%})  loss {value:.5f}  {speed:.1f} steps/s", flush=True)
        return now, self.step
