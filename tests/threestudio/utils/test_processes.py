"""Who does which part of a batch; the processes themselves are in tests/test_two_processes.py."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from threestudio.data.uncond import RandomCameraDataModule
from threestudio.errors import ConfigError
from threestudio.utils import processes
from threestudio.utils.processes import (
    STEPS_BETWEEN_LOOKS,
    StopTogether,
    UnwrappedDDPStrategy,
    device_count,
    own_rows,
    strategy_for,
)


@pytest.fixture
def pretend(monkeypatch):
    """To be one of several processes."""

    def be(rank, count):
        monkeypatch.setattr(processes, "process_count", lambda: count)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)

    return be


def cameras(strategy):
    torch.manual_seed(3)
    data = RandomCameraDataModule({"batch_size": 4, "height": 6, "width": 6, "light_sample_strategy": strategy})
    data.setup("fit")
    return [data.train_dataset.batch_at(index) for index in (0, 5)]


@pytest.mark.parametrize("strategy", ["dreamfusion", "magic3d"])
def test_the_processes_cameras_are_those_of_one_process(pretend, strategy):
    alone = cameras(strategy)
    shares = []
    for rank in (0, 1):
        pretend(rank, 2)
        shares.append(cameras(strategy))
    for whole, *parts in zip(alone, *shares):
        assert whole.keys() == parts[0].keys()
        for key, value in whole.items():
            if isinstance(value, torch.Tensor):
                assert len(parts[0][key]) == 2
                assert torch.equal(torch.cat([part[key] for part in parts]), value), key
            else:
                assert parts[0][key] == parts[1][key] == value


def test_rows(pretend):
    assert own_rows(5) == slice(0, 5)
    pretend(2, 3)
    assert own_rows(6) == slice(4, 6)
    with pytest.raises(ConfigError, match="data.batch_size is 4, which 3 processes cannot share evenly"):
        own_rows(4)


@pytest.mark.parametrize(
    "settings, count",
    [
        ({}, 1), ({"devices": 2}, 2), ({"devices": "2"}, 2), ({"devices": [0, 3]}, 2), ({"devices": "0,1,2"}, 3),
        ({"devices": "0,"}, 1), ({"devices": -1, "accelerator": "gpu"}, 5), ({"devices": "-1", "accelerator": "cuda"}, 5),
        ({"devices": "auto", "accelerator": "gpu"}, 5), ({"devices": "auto", "accelerator": "cpu"}, 1),
    ],
)  # fmt: skip
def test_devices_asked_for(monkeypatch, settings, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert device_count(settings) == count


def test_a_system_that_averages_its_gradients_is_not_wrapped():
    own, other = SimpleNamespace(averages_gradients=True), SimpleNamespace()
    for given in ({}, {"strategy": "ddp"}):
        assert isinstance(strategy_for(own, {"devices": 2, **given}), UnwrappedDDPStrategy)
    assert strategy_for(own, {"devices": 1}) == "auto"
    assert strategy_for(other, {"devices": 2}) == "auto"
    assert strategy_for(own, {"devices": 2, "strategy": "ddp_spawn"}) == "ddp_spawn"


@pytest.fixture
def trainer(monkeypatch):
    """Lightning's, as its strategy leaves it. `.others` is what other processes say at each look, `.looks` counts."""
    made = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    if not hasattr(made.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"):
        pytest.skip(f"Lightning {pl.__version__} tells no process of another's signals")
    monkeypatch.setattr(DDPStrategy, "setup", lambda self, trainer: None)
    made.looks, made.others = 0, 0
    made.state.fn = TrainerFn.FITTING

    def all_reduce(flag, operation):
        assert operation == torch.distributed.ReduceOp.MAX
        made.looks += 1
        flag.fill_(max(int(flag), made.others))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    UnwrappedDDPStrategy().setup(made)
    return made


def steps(trainer, count):
    for _ in range(count):
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()


def test_the_device_is_asked_for_signals_only_now_and_then(trainer):
    steps(trainer, 2 * STEPS_BETWEEN_LOOKS + 1)
    assert trainer.looks == 3


@pytest.mark.parametrize("own", [True, False])
def test_all_end_when_one_is_told_to(trainer, own):
    steps(trainer, 1)
    if own:
        trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
        assert not trainer.received_sigterm  # at which Lightning would end this process alone
    else:
        trainer.others = 1
    steps(trainer, STEPS_BETWEEN_LOOKS - 1)
    with pytest.raises(SIGTERMException):
        steps(trainer, 1)


def test_outside_of_a_training_each_ends_by_itself(trainer):
    trainer.state.fn, told = TrainerFn.TESTING, []
    trainer.strategy._launcher = SimpleNamespace(kill=told.append)
    trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
    assert trainer.received_sigterm and told == [signal.SIGTERM]


def test_a_lightning_that_does_not_look_is_left_alone():
    before = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()))
    StopTogether(before).install()
    assert vars(before.fit_loop.epoch_loop) == {}
