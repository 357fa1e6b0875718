"""The processes that make one asset together, one for each GPU: what they share out, add up and must agree on.

Each process works on its rows of the same batch of views; the rows of rank r follow those of rank r - 1. Random numbers
are drawn for the whole batch by every process, from generators in the same state, and each keeps its rows. So the union
of the processes' batches is the batch of a single process, and generators never come apart. Alone, everything here does
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .errors import DreamMappingError


class ProcessesDisagree(DreamMappingError):
    """What all processes must hold alike is not alike."""


def together() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_count() -> int:
    """How many processes work on this run."""
    return dist.get_world_size() if together() else 1


def process_rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if together() else 0


@dataclass(frozen=True)
class Rows:
    """Rows `first` to `first + count` of a whole batch of `total`."""

    first: int
    count: int
    total: int

    @classmethod
    def of_process(cls, count: int) -> Rows:
        """Those of this process, which has `count` as every other has."""
        return cls(process_rank() * count, count, process_count() * count)

    def part(self, start: int, stop: int) -> Rows:
        """Of these rows those from `start` to `stop`."""
        return Rows(self.first + start, stop - start, self.total)

    def take(self, whole: Tensor, times: int = 1) -> Tensor:
        """These rows of `whole` [times * total, ...], `times` batches in a row -> [times * count, ...]."""
        if self.count == self.total:
            return whole
        batches = whole.reshape(times, self.total, *whole.shape[1:])
        return batches[:, self.first : self.first + self.count].flatten(0, 1)


# ---- adding up ----


def sum_over_processes(tensors: Iterable[Tensor | None]) -> None:
    """In place, in one transfer for each type of number. None is left out: it has to be None on all processes."""
    if together():
        _add_up(tensors, 1)


def average_over_processes(tensors: Iterable[Tensor | None]) -> None:
    """As `sum_over_processes`, divided by the number of processes: of gradients of means over equal shares of a batch,
    the gradient of the mean over the whole batch."""
    if together():
        _add_up(tensors, process_count())


def _add_up(tensors: Iterable[Tensor | None], divisor: int) -> None:
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None:
            by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        if divisor > 1:
            flat /= divisor
        totals = flat.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [total.view(tensor.shape) for tensor, total in zip(group, totals)])


def greatest_over_processes(tensor: Tensor) -> None:
    """Elementwise maximum, in place."""
    if together():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)


class GatherRows(torch.autograd.Function):
    """A tensor of each process, stacked by rank: [...] -> [processes, ...], with graph.

    The gradient that comes back is of the sum of all processes' losses.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(process_count())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[process_rank()]


# ---- agreeing ----


def start_alike(module: nn.Module, what: str) -> None:
    """Give all processes the first one's parameters and buffers: what was made from one seed may differ in its last
    bits between devices.

    Raises:
        ProcessesDisagree: the tensors are not the same in number and shape.
    """
    if not together():
        return
    tensors = [*module.parameters(), *module.buffers()]
    shapes: list[Any] = [None] * process_count()
    dist.all_gather_object(shapes, [tuple(t.shape) for t in tensors])
    if any(other != shapes[0] for other in shapes):
        raise ProcessesDisagree(
            f"{what} has other shapes on different processes, so they cannot train it together. Start it from "
            "something that does not depend on the process, such as a file (system.geometry.load_splat)"
        )
    with torch.no_grad():
        for tensor in tensors:
            if tensor.numel():
                value = tensor.data.contiguous()  # NCCL takes no other
                dist.broadcast(value, 0)
                tensor.data.copy_(value)


def require_alike(tensors: Iterable[Tensor], what: str) -> None:
    """Compare the tensors' sizes and a checksum of their bits between all processes. Waits for the device.

    Raises:
        ProcessesDisagree: on every process alike, if they differ.
    """
    if not together():
        return
    own = torch.stack([_fingerprint(tensor) for tensor in tensors]).flatten()
    seen = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(seen, own)
    if all(torch.equal(other, seen[0]) for other in seen):
        return
    sizes = ", ".join(str([int(n) for n in other[::2]]) for other in seen)
    raise ProcessesDisagree(
        f"{what} is no longer the same on all processes (numbers of elements by process: {sizes}), so the run cannot "
        "go on. Resume from the last checkpoint with one GPU, or report this with the run's configuration"
    )


def _fingerprint(value: Tensor) -> Tensor:
    """[2] int64: number of elements, and a sum of their bits weighted by place."""
    bits = value.detach().contiguous().view(-1).view(_INTEGERS[value.element_size()]).long()
    weights = torch.arange(bits.numel(), device=bits.device) % 8191 + 1
    return torch.stack([weights.new_tensor(bits.numel()), (bits * weights).sum()])


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
