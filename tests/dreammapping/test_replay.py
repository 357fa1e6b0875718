"""Recorded functions: what is recorded when, and that results and gradients are the function's own."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from dreammapping.replay import WARM_UP, CudaRecorder, Replayed

from tests.helpers.recorder import PlayedRecorder


def affine(x, y):
    return (x * y.sin() + 1, x.sum(-1))


def inputs(seed=0, rows=3, **options):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 4, generator=g, dtype=torch.float64).requires_grad_(False) for _ in range(2)]


def test_the_third_call_is_recorded_and_equals_the_function():
    recorder = PlayedRecorder()
    replayed = Replayed(affine, "it", recorder=recorder)
    made = []
    for seed in range(5):
        for got, expected in zip(replayed(*inputs(seed)), affine(*inputs(seed))):
            assert torch.equal(got, expected)
        made.append(recorder.made)
    assert made == [0, 0, 1, 1, 1]


def test_results_outlive_the_next_call():
    replayed = Replayed(affine, "it", after=0, recorder=PlayedRecorder())
    first = replayed(*inputs(0))
    replayed(*inputs(1))
    assert torch.equal(first[0], affine(*inputs(0))[0])


def test_shapes_types_and_keys_have_recordings_of_their_own_and_the_oldest_goes():
    recorder = PlayedRecorder()
    replayed = Replayed(affine, "it", after=0, keep=2, recorder=recorder)
    single = [x.float() for x in inputs()]
    for arguments, key in ((inputs(), ()), (single, ()), (inputs(), "other"), (single, ())):
        assert torch.equal(replayed(*arguments, key=key)[0], affine(*arguments)[0])
    assert recorder.made == 3
    replayed(*inputs())  # was thrown out
    assert recorder.made == 4


def test_a_function_that_cannot_be_recorded_is_called_with_one_warning():
    recorder = PlayedRecorder()
    recorder.fails = True
    replayed = Replayed(affine, "the network", after=0, recorder=recorder)
    with pytest.warns(UserWarning, match="the network runs without a CUDA graph.*not permitted") as seen:
        for seed in range(3):
            assert torch.equal(replayed(*inputs(seed))[0], affine(*inputs(seed))[0])
    assert len(seen) == 1 and "trace" not in str(seen[0].message) and replayed.gave_up


def test_shapes_that_keep_changing_end_the_recording():
    replayed = Replayed(affine, "it", after=0, keep=1, recorder=PlayedRecorder())
    with pytest.warns(UserWarning, match="more than 4 sets of shapes"):
        for rows in range(1, 7):
            assert torch.equal(replayed(*inputs(rows=rows))[0], affine(*inputs(rows=rows))[0])


def test_shapes_seen_once_are_never_recorded():
    recorder = PlayedRecorder()
    replayed = Replayed(affine, "it", recorder=recorder)
    for rows in range(1, 30):
        replayed(*inputs(rows=rows))
    assert recorder.made == 0 and not replayed.gave_up


@pytest.mark.parametrize("fails", [False, True])
def test_warming_up_does_not_count(fails):
    total = torch.zeros(4)

    def accumulate(x):
        total.add_(x)
        return (total * 1,)

    recorder = PlayedRecorder()
    recorder.fails = fails
    replayed = Replayed(accumulate, "it", after=1, state=lambda: [total], recorder=recorder)
    with pytest.warns(UserWarning) if fails else torch.no_grad():
        for call in range(1, 5):
            assert torch.equal(replayed(torch.ones(4))[0], torch.full((4,), float(call)))


def test_gradients_are_the_functions_own():
    recorder = PlayedRecorder()
    replayed = Replayed(affine, "it", after=1, differentiable=True, recorder=recorder)
    for seed in range(4):
        found = []
        for function in (replayed, affine):
            x, y = inputs(seed)
            x.requires_grad_()
            first, second = function(x, y)
            assert first.requires_grad and second.requires_grad
            found.append(torch.autograd.grad((first * y).sum() + (second**2).sum(), x)[0])
        assert torch.equal(*found)
    assert recorder.made == 2


def test_without_a_wish_for_gradients_there_is_no_graph():
    replayed = Replayed(affine, "it", after=0, differentiable=True, recorder=PlayedRecorder())
    x, y = inputs()
    with torch.no_grad():
        assert not replayed(x.requires_grad_(), y)[0].requires_grad
    assert replayed(x, y)[0].requires_grad


def test_results_that_carry_no_gradient_stay_without():
    replayed = Replayed(lambda x, y: (x * y, y + 1), "it", after=0, differentiable=True, recorder=PlayedRecorder())
    x, y = inputs()
    product, other = replayed(x.requires_grad_(), y)
    assert product.requires_grad and not other.requires_grad
    (2 * product).sum().backward()
    assert torch.equal(x.grad, 2 * y)


def test_a_backward_after_the_next_call_is_refused():
    replayed = Replayed(affine, "it", after=0, differentiable=True, recorder=PlayedRecorder())
    x, y = inputs()
    x.requires_grad_()
    early = replayed(x, y)[0].sum()
    late = replayed(x, y)[0].sum()
    late.backward()
    with pytest.raises(RuntimeError, match="overwritten"):
        early.backward()


def test_forgetting_records_anew():
    recorder = PlayedRecorder()
    replayed = Replayed(affine, "it", after=0, recorder=recorder)
    replayed(*inputs())
    replayed.forget()
    replayed(*inputs())
    assert recorder.made == 2


def test_elsewhere_than_on_cuda_the_function_itself_is_called():
    calls = []
    replayed = Replayed(lambda x: calls.append(1) or (x,), "it", after=0)
    x = torch.ones(2)
    assert replayed(x)[0] is x and replayed(x)[0] is x and len(calls) == 2


def test_what_direct_calls_left_in_the_cache_is_given_back_before_warming_up(monkeypatch):
    """Otherwise the driver counts it beside the warming up, which runs on another stream."""
    told, stream = [], SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda s: nullcontext()}
    for name, fake in (fakes | {"empty_cache": lambda: told.append("emptied")}).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    CudaRecorder().warm_up(lambda: told.append("run"))
    assert told == ["emptied", *["run"] * WARM_UP]


def test_nothing_of_an_earlier_call_is_held_while_warming_up():
    kept = []

    class Recorder(PlayedRecorder):
        def warm_up(self, function):
            assert len(kept) == 1 and kept[0]() is None
            super().warm_up(function)

    def function(x):
        y = x.exp()
        kept.append(weakref.ref(y))
        return (y,)

    replayed = Replayed(function, "it", after=0, differentiable=True, recorder=Recorder())
    assert replayed(torch.ones(3, requires_grad=True))[0].requires_grad and not replayed.gave_up


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_graphs_give_the_functions_values_and_gradients():
    replayed = Replayed(affine, "it", after=1, differentiable=True)
    for seed in range(4):
        x, y = (v.cuda() for v in inputs(seed))
        x.requires_grad_()
        mine, other = replayed(x, y), affine(x, y)
        for got, expected in zip(mine, other):
            torch.testing.assert_close(got, expected)
        grads = [torch.autograd.grad(sum(r.square().sum() for r in results), x)[0] for results in (mine, other)]
        torch.testing.assert_close(*grads)
    assert not replayed.gave_up
