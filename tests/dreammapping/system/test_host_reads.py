"""Where a training step asks a tensor for a number. On a GPU each such question about a tensor there would wait for it.

A CPU cannot tell tensors that would be on a GPU from those that would not, so the places are listed: all of these ask
tensors that are on the host in any case, or ask a step later or now and then where there is a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import threestudio
import torch
from threestudio.utils.config import load_config
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.small_run import CONFIG, overrides
from tests.helpers.tiny_teacher import make_tiny_teacher

SOURCE = Path(__file__).resolve().parents[3]
ASKING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique_dim", "aten._unique2"}
ON_THE_HOST = {
    ("threestudio/data/sampling.py", "draw_elevation"),  # a coin from a CPU generator
    ("threestudio/models/background/base.py", "should_augment"),  # likewise
    ("custom/dreammapping/distillation/vdm.py", "_trains"),  # t_host
}


class Questions(TorchDispatchMode):
    """Records the function of ours that asks."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).rsplit(".", 1)[0]
        by_mask = name in ("aten.index", "aten.index_put_", "aten.index_put") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in ASKING or by_mask:
            self.places.add(place())
        return function(*args, **(kwargs or {}))


def place():
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE) and "tests" not in path.parts and "site-packages" not in path.parts:
            return (path.relative_to(SOURCE).as_posix(), frame.f_code.co_name)
        frame = frame.f_back
    return ("", "")


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    teacher = make_tiny_teacher(root / "teacher")
    config = load_config(CONFIG, cli_args=overrides(teacher, root))
    torch.manual_seed(0)
    system = threestudio.find(config.system_type)(config.system)
    system.train()
    optimizer = system.configure_optimizers()["optimizer"]
    data = threestudio.find(config.data_type)(config.data)
    data.setup("fit")
    batches = iter(data.train_dataloader())

    def take(number):
        system.geometry.update_learning_rates(optimizer, number)
        batch = next(batches)
        out = system(batch)
        info = out["rasterization"].info
        loss = system.total_loss(out, batch)
        system.geometry.before_backward(number, info)
        loss.backward()
        optimizer.step()
        system.geometry.densification._collect(info)
        optimizer.zero_grad(set_to_none=True)

    take(0)  # what is asked once, at the first step, does not count
    return take


def test_a_step_asks_tensors_of_the_host_only(step):
    with Questions() as asked:
        for number in range(1, 4):
            step(number)
    assert asked.places <= ON_THE_HOST


def test_questions_are_noticed():
    x = torch.ones(3)
    for question in (lambda: float(x[0]), lambda: x[x > 0], lambda: x.nonzero(), lambda: bool((x > 0).any())):
        with Questions() as asked:
            question()
        assert asked.places
