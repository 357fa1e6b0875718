"""One of two processes (gloo, CPU) that work together: computes its share of small cases, then runs launch.py.

    python two_processes.py RANK FOLDER    # FOLDER/runs.json: a list of launch.py's argument lists

Writes FOLDER/shares-RANK.pt. Called without another process (`shares()`), the same code gives the whole batch's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

from dreammapping.distillation import (  # noqa: E402
    Distiller,
    DistillerSettings,
    LossContext,
    build_loss,
    build_timesteps,
    draw_noise,
)
from dreammapping.distillation.draw import draw_training_pairs  # noqa: E402
from dreammapping.distillation.recorded_update import RecordedUpdate  # noqa: E402
from dreammapping.gaussians import Densification, DensificationSettings  # noqa: E402
from dreammapping.processes import (  # noqa: E402
    Rows,
    average_over_processes,
    process_count,
    process_rank,
    require_alike,
    start_alike,
)
from dreammapping.teachers.closed_form import ClosedFormTeacher, GaussianMixture  # noqa: E402
from threestudio.errors import ConfigError  # noqa: E402
from threestudio.models.background.base import random_colors  # noqa: E402
from threestudio.utils.processes import own_rows  # noqa: E402

from tests.helpers.recorder import PlayedRecorder  # noqa: E402

BATCH, SHAPE = 4, (4, 8, 8)


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own(whole: torch.Tensor) -> torch.Tensor:
    return Rows.of_process(len(whole) // process_count()).take(whole)


def teacher() -> ClosedFormTeacher:
    means = {"cond": numbers(*SHAPE, seed=2), "empty": numbers(*SHAPE, seed=3)}
    return ClosedFormTeacher({name: GaussianMixture.single(mean, 0.5) for name, mean in means.items()})


def random_numbers() -> dict[str, torch.Tensor]:
    """What a step draws. The pairs are two batches in a row."""
    generator = torch.Generator().manual_seed(7)
    noise = draw_noise(own(numbers(BATCH, *SHAPE)), generator, offset=0.3)
    pair = draw_training_pairs(own(numbers(BATCH, *SHAPE)), teacher().schedule, generator, times=2)
    torch.manual_seed(5)
    colors = random_colors(torch.zeros(BATCH // process_count(), 2, 2, 3))
    rest = torch.rand(1, generator=generator)
    return {"noise": noise, "pairs": torch.stack(pair.noise.chunk(2), 1), "t": torch.stack(pair.t_host.chunk(2), 1),
            "colors": colors, "rest": rest.expand(len(noise))}  # fmt: skip


TEXTS = {name: torch.zeros(1, 1, 1) for name in ("cond", "empty")}


def distiller_of(shared: bool = False, recorded: bool = False, reduction: str = "mean", **loss: Any) -> Distiller:
    generator = torch.Generator().manual_seed(3)
    predictor = teacher()
    vdm = build_loss({"type": "vdm", "m_dtype": "float64", **loss}, LossContext(predictor, SHAPE, generator))
    settings = DistillerSettings(grad_reduction=reduction)
    made = Distiller(vdm, predictor, settings, generator, build_timesteps({"type": "uniform", "shared": shared}))
    if recorded:
        made.recorded = RecordedUpdate(made.update, vdm, made.optimizer, PlayedRecorder())
    return made


def distillation(**options: Any) -> dict[str, torch.Tensor]:
    """Three steps of VDM on latents that all depend on one parameter, whose gradient the processes average."""
    distiller = distiller_of(**options)
    parameter = numbers(*SHAPE, seed=6).requires_grad_()
    for step in range(3):
        latents = parameter * own(numbers(BATCH, *SHAPE, seed=20 + step))
        gradient = torch.autograd.grad(distiller(latents, TEXTS, step=step).loss, parameter)[0]
        average_over_processes([gradient])
        parameter.data -= 0.1 * gradient
    learned = torch.cat([p.detach().flatten().double() for p in distiller.loss.parameters()])
    return {"parameter": parameter.detach().expand(len(latents), *SHAPE), "learned": learned.expand(len(latents), -1)}


def statistics(loss_over_views: str, views: str) -> dict[str, torch.Tensor]:
    """What densification collects from views whose gradients are those of a mean or a sum over the batch."""
    settings = DensificationSettings(type="default", loss_over_views=loss_over_views, views=views, prune_scale2d=0.5)
    densification = Densification(settings, 5)
    for step in range(2):
        means2d = torch.zeros(BATCH // process_count(), 5, 2, requires_grad=True)
        scale = BATCH // process_count() if loss_over_views == "mean" else 1 / process_count()
        means2d.grad = own(numbers(BATCH, 5, 2, seed=30 + step)).float() / scale
        radii = own((numbers(BATCH, 5, 2, seed=40 + step) * 10).int())
        info = {"means2d": means2d, "radii": radii, "width": 16, "height": 16}
        densification.after_step(step, info, None, torch.optim.Adam([torch.zeros(1)]))
    state = {name: getattr(densification, name) for name in ("grad2d", "count", "radii")}
    return {name: value.double().expand(len(radii), -1) for name, value in state.items()}


CASES = {
    "random numbers": random_numbers,
    "mean": distillation,
    "sum": lambda: distillation(reduction="sum"),
    "shared t": lambda: distillation(shared=True),
    "recorded": lambda: distillation(recorded=True),
    "linear": lambda: distillation(operator="linear"),
    "some t train": lambda: distillation(operator="linear", op_tmin=700),
    "measured": lambda: distillation(operator="linear", dca={"type": "measured"}),
    "learned": lambda: distillation(operator="linear", dca={"type": "learned"}),
    "statistics of a mean": lambda: statistics("mean", "all"),
    "statistics of a sum": lambda: statistics("sum", "all"),
    "statistics of the last view": lambda: statistics("sum", "last"),
}


def shares() -> dict[str, dict[str, torch.Tensor]]:
    """Of each case this process's rows, by name."""
    return {name: case() for name, case in CASES.items()}


def step_apart() -> Iterator[torch.Tensor]:
    """What a step leaves of an operator that differs between the processes by as little as rounding does."""
    distiller = distiller_of(operator="linear")
    for parameter in distiller.loss.parameters():
        parameter.data += 1e-12 * process_rank()
    distiller(own(numbers(BATCH, *SHAPE)).requires_grad_(), TEXTS)
    return distiller.loss.parameters()


def messages() -> dict[str, str]:
    """Errors, and whether the first process's values win."""
    found = {}
    module = torch.nn.Linear(2, 2)
    module.weight.data += process_rank()
    for name, act in {
        "alike": lambda: require_alike([torch.ones(3)], "this"),
        "bits": lambda: require_alike([torch.ones(3) + 1e-7 * process_rank()], "this"),
        "places": lambda: require_alike([torch.tensor([0.0, 1.0] if process_rank() else [1.0, 0.0])], "this"),
        "sizes": lambda: require_alike([torch.ones(3 + process_rank())], "this"),
        "differ": lambda: start_alike(torch.nn.Linear(2, 2 + process_rank()), "the system"),
        "start": lambda: (start_alike(module, "the system"), require_alike(module.parameters(), "the system")),
        "apart": lambda: require_alike(step_apart(), "the operator"),
        "odd": lambda: own_rows(3),
    }.items():
        try:
            act()
            found[name] = ""
        except (ValueError, ConfigError) as error:
            found[name] = str(error)
    return found


def main(rank: int, folder: Path) -> int:
    # Lightning reads these, and takes the process group that is there.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # not used
    torch.distributed.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=2)
    torch.save({"shares": shares(), "messages": messages()}, folder / f"shares-{rank}.pt")
    import launch

    codes = [launch.main(arguments) for arguments in json.loads((folder / "runs.json").read_text())]
    torch.distributed.destroy_process_group()
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
