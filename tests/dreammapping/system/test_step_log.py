from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from dreammapping.system.step_log import StepLog


class System:
    """`trainer` as Lightning's, after `steps` optimizer steps; `sent` is what was logged."""

    def __init__(self, steps, every=10, max_steps=100):
        self.trainer = SimpleNamespace(global_step=steps, log_every_n_steps=every, max_steps=max_steps)
        self.sent = {}

    def log(self, name, value, prog_bar=False):
        self.sent[name] = (float(value), prog_bar)


@pytest.mark.parametrize(
    ("steps", "every", "wanted"),
    [(10, 10, True), (11, 10, False), (9, 10, False), (7, 1, True), (7, 0, False), (100, 30, True)],
)
def test_only_steps_that_loggers_keep_are_wanted(steps, every, wanted):
    assert StepLog(System(steps, every)).wanted is wanted


def test_stepped_by_hand_nothing_is_wanted():
    class Alone:
        @property
        def trainer(self):
            raise RuntimeError("not attached to a Trainer")

    assert StepLog(Alone()).wanted is False


def test_all_kinds_of_numbers_arrive_with_their_names_once():
    system = System(10)
    log = StepLog(system)
    log.add("a", 3)
    log.add("b", torch.tensor([2.5], requires_grad=True), prog_bar=True)
    log.add("c", torch.tensor(7))
    log.add("a", 4)
    log.send()
    assert system.sent == {"a": (4.0, False), "b": (2.5, True), "c": (7.0, False)}
    system.sent.clear()
    log.send()
    assert system.sent == {}
