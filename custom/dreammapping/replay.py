"""CUDA graphs: a function's kernels recorded once for each shape and started again as one. torch only.

A network of a thousand small kernels keeps the host busy launching them; a recording is launched in a few microseconds.
What may be recorded: a function of tensors without decisions that depend on their values, without random draws (their
numbers would be those of the recording for ever) and without anything that waits for the device.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

TensorFunction = Callable[..., "tuple[Tensor, ...]"]
WARM_UP = 3
"""Runs before a recording, in which libraries choose their algorithms and allocate their workspaces."""


class Recorder(Protocol):
    """What makes recordings; tests bring one that works on a CPU."""

    def covers(self, device: torch.device) -> bool:
        """Whether functions of tensors on `device` can be recorded."""
        ...

    def warm_up(self, function: Callable[[], Any]) -> None:
        """Run `function` a few times."""
        ...

    def pool(self, shared: bool) -> Any:
        """Working memory for recordings: the one that all share, or a new one."""
        ...

    def record(self, function: Callable[[], tuple[Tensor, ...]], pool: Any) -> tuple[Callable[[], None], Any]:
        """(replay, outputs): `replay()` computes `outputs` anew, in place, in the memory of `pool`."""
        ...


class CudaRecorder:
    """CUDA graphs."""

    _shared_pool: Any = None

    def covers(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def warm_up(self, function: Callable[[], Any]) -> None:
        # What direct calls have left in torch's cache serves neither this stream nor the recording's pool, but the driver
        # counts it as in use. The recording itself empties the cache once more, of what is used here.
        torch.cuda.empty_cache()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)

    def pool(self, shared: bool) -> Any:
        if not shared:
            return torch.cuda.graph_pool_handle()
        if CudaRecorder._shared_pool is None:
            CudaRecorder._shared_pool = torch.cuda.graph_pool_handle()
        return CudaRecorder._shared_pool

    def record(self, function: Callable[[], tuple[Tensor, ...]], pool: Any) -> tuple[Callable[[], None], Any]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread that talks to the device meanwhile spoils nothing.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = function()
        return graph.replay, tuple(output.detach() for output in outputs)


class Replayed:
    """A function of tensors that is recorded once it has been called `after` times with one set of shapes.

    Calls it directly on other devices than CUDA, while a set of shapes is new, and for good (with one warning) where
    recording fails or shapes keep changing. Results are copies: the next call does not touch them.

    With `differentiable`, gradients reach the inputs that want one, from a second recording; each call's backward must
    come before the next call with these shapes (RuntimeError otherwise). Without, the results carry no graph.
    """

    def __init__(
        self,
        function: TensorFunction,
        what: str,
        *,
        differentiable: bool = False,
        state: Callable[[], Sequence[Tensor]] | None = None,
        after: int = 2,
        keep: int = 8,
        recorder: Recorder | None = None,
    ) -> None:
        """`what` names it in the warning. `state` lists the tensors that the function changes in place: warming up must
        not count. `keep` recordings are held, those used last."""
        self.function, self.what, self.differentiable = function, what, differentiable
        self._state, self._after, self._keep = state or (lambda: ()), after, keep
        self._recorder = recorder or CudaRecorder()
        self._seen: Counter[Hashable] = Counter()
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._made = 0
        self.gave_up = False

    def __call__(self, *inputs: Tensor, key: Hashable = ()) -> tuple[Tensor, ...]:
        """The function's results. `key`: whatever else the function depends on."""
        if not self.covers(inputs[0].device):
            return self.function(*inputs)
        wants_gradient = self.differentiable and torch.is_grad_enabled()
        signature = (
            key,
            wants_gradient,
            tuple((x.shape, x.dtype, x.device, wants_gradient and x.requires_grad) for x in inputs),
        )
        recording = self._recordings.get(signature)
        if recording is None:
            self._seen[signature] += 1
            if self._seen[signature] <= self._after:
                return self.function(*inputs)
            recording = self._record(signature, inputs, wants_gradient)
            if recording is None:
                return self.function(*inputs)
        self._recordings.move_to_end(signature)
        return recording(inputs)

    def covers(self, device: torch.device) -> bool:
        """Whether calls on `device` are recorded."""
        return not self.gave_up and self._recorder.covers(device)

    def forget(self) -> None:
        """Drop all recordings: the tensors they read or change have been replaced."""
        self._recordings.clear()
        self._seen.clear()

    def _record(self, signature: Hashable, inputs: Sequence[Tensor], wants_gradient: bool) -> _Recording | None:
        if self._made >= 4 * self._keep:
            self._give_up(f"it has been called with more than {self._made} sets of shapes")
            return None
        kind = _TwoWay if wants_gradient and any(x.requires_grad for x in inputs) else _Recording
        saved = [(x, x.detach().clone()) for x in self._state()]
        try:
            recording = kind(self.function, inputs, self._recorder)
        except Exception as problem:  # whatever a library does that cannot be recorded: the direct call still works
            self._give_up(str(problem).strip().split("\n")[0] or type(problem).__name__)
            recording = None
        finally:
            with torch.no_grad():
                for x, before in saved:
                    x.copy_(before)
        if recording is not None:
            self._made += 1
            self._recordings[signature] = recording
            if len(self._recordings) > self._keep:
                self._recordings.popitem(last=False)
        return recording

    def _give_up(self, why: str) -> None:
        self.gave_up = True
        self.forget()
        warnings.warn(f"{self.what} runs without a CUDA graph, which is slower: {why}")


class _Recording:
    """A function with buffers for its inputs."""

    def __init__(self, function: TensorFunction, inputs: Sequence[Tensor], recorder: Recorder) -> None:
        self._inputs = [x.detach().clone() for x in inputs]
        recorder.warm_up(lambda: function(*self._inputs))
        # It leaves nothing behind but its outputs, which are copied at once: the next one may work in the same memory.
        self._replay, self._outputs = recorder.record(lambda: function(*self._inputs), recorder.pool(shared=True))

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        _fill(self._inputs, inputs)
        self._replay()
        return tuple(output.clone() for output in self._outputs)


class _TwoWay(_Recording):
    """The same with its backward. What that needs lies in memory of the pair's own until then."""

    def __init__(self, function: TensorFunction, inputs: Sequence[Tensor], recorder: Recorder) -> None:
        self._function = function
        self._inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        self._wanted = [x for x in self._inputs if x.requires_grad]
        self.carries = [y.requires_grad for y in self._forward()]
        self._gradients = [torch.ones_like(y, memory_format=torch.contiguous_format) for y in self._roots()]
        self._live = ()  # its memory is not to be held beside that of the warming up
        recorder.warm_up(lambda: (self._forward(), self._backward()))
        self._live = ()  # as in _forward: the recording has a stream of its own
        pool = recorder.pool(shared=False)
        self._replay, self._outputs = recorder.record(self._forward, pool)
        self._replay_backward, self._input_gradients = recorder.record(self._backward, pool)
        self.calls = 0

    def _forward(self) -> tuple[Tensor, ...]:
        # The last graph goes first: while it lives, a leaf's gradient belongs to the stream that the leaf was first used on,
        # and a backward that has to wait for that stream cannot be recorded.
        self._live: tuple[Tensor, ...] = ()
        with torch.enable_grad():
            self._live = self._function(*self._inputs)
        return self._live

    def _roots(self) -> list[Tensor]:
        """The results that gradients come from."""
        return [y for y, carries in zip(self._live, self.carries) if carries]

    def _backward(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self._roots(), self._wanted, self._gradients)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _Both.apply(self, *inputs)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self.calls += 1
        return super().__call__(inputs)

    def backward(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        _fill(self._gradients, [gradient for gradient, carries in zip(gradients, self.carries) if carries])
        self._replay_backward()
        return [gradient.clone() for gradient in self._input_gradients]


class _Both(torch.autograd.Function):
    """A two-way recording in the graph of the step."""

    @staticmethod
    def forward(ctx: Any, recording: _TwoWay, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.recording, ctx.wanted = recording, [x.requires_grad for x in inputs]
        results = recording.forward(inputs)
        ctx.call = recording.calls
        ctx.mark_non_differentiable(*(y for y, carries in zip(results, recording.carries) if not carries))
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.call != ctx.recording.calls:
            raise RuntimeError(
                "the backward of a recorded function comes after its next call, which has overwritten what it needs; "
                "call backward after each forward, or switch cuda_graphs off"
            )
        found = iter(ctx.recording.backward(gradients))
        return (None, *(next(found) if wanted else None for wanted in ctx.wanted))


def _fill(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(buffers, values):
            buffer.copy_(value)
