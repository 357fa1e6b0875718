from __future__ import annotations

import pytest
import torch
from dreammapping.system import guards
from dreammapping.system.guards import DivergenceError, FiniteGuard, SilentTeacher, check_finite


def parameters() -> torch.nn.Module:
    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.ones(2, 2)
    return model  # the bias has no gradient, as a part that took no part


def test_a_healthy_step_passes():
    check_finite(0, torch.tensor(1.0), parameters().named_parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_message_names_step_and_culprit(bad):
    with pytest.raises(DivergenceError, match="Step 7: the loss became"):
        check_finite(7, torch.tensor(bad), parameters().named_parameters())
    broken = parameters()
    broken.weight.grad[0, 1] = bad
    with pytest.raises(DivergenceError, match="Step 7: the gradient of weight became"):
        check_finite(7, torch.tensor(1.0), broken.named_parameters())


def test_a_teacher_that_never_answers_is_noticed():
    silence = SilentTeacher(patience=5)
    with pytest.raises(DivergenceError, match="Step 4: for 5 steps"):
        for step in range(10):
            silence.watch(step, torch.tensor(float("nan")))


def test_single_bad_answers_are_forgiven():
    silence = SilentTeacher(patience=5)
    for step in range(50):
        silence.watch(step, torch.tensor(1.0 if step % 4 == 0 else float("inf")))


class OnItsWay(guards.Arriving):
    """As from a GPU: nobody may look before the next step."""

    at_once = False


def test_on_a_gpu_a_broken_step_is_found_before_the_next_or_before_anything_is_kept(monkeypatch):
    monkeypatch.setattr(guards, "Arriving", OnItsWay)
    for find in (lambda g: g.settle(), lambda g: g.check(8, torch.tensor(1.0), parameters().named_parameters())):
        guard = FiniteGuard()
        guard.check(6, torch.tensor(1.0), parameters().named_parameters())
        guard.check(7, torch.tensor(float("nan")), parameters().named_parameters())
        with pytest.raises(DivergenceError, match="Step 7: the loss became.* The last checkpoint is from before it"):
            find(guard)


def test_on_a_gpu_a_silent_teacher_is_found_a_step_later(monkeypatch):
    monkeypatch.setattr(guards, "Arriving", OnItsWay)
    silence = SilentTeacher(patience=5)
    for step in range(5):
        silence.watch(step, torch.tensor(float("nan")))
    with pytest.raises(DivergenceError, match="Step 4: for 5 steps"):
        silence.watch(5, torch.tensor(float("nan")))
