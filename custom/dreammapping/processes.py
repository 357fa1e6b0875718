"""The processes that make one asset together, one for each GPU: what they share out, add up and must agree on.

Each process works on its rows of the same batch of views; the rows of rank r follow those of rank r - 1. Random numbers
are drawn for the whole batch by every process, from generators in the same state, and each keeps its rows. So the union
of the processes' batches is the batch of a single process, and generators never come apart. Alone, everything here does
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
        _in_one_transfer(tensors, dist.all_reduce)


def average_over_processes(tensors: Iterable[Tensor | None]) -> None:
    """As `sum_over_processes`, divided by the number of processes: of gradients of means over equal shares of a batch,
    the gradient of the mean over the whole batch."""
    if together():
        _in_one_transfer(tensors, lambda flat: (dist.all_reduce(flat), flat.div_(process_count())))


def follow_first(tensors: Iterable[Tensor | None]) -> None:
    """As `sum_over_processes`, with the first process's values for all."""
    if together():
        _in_one_transfer(tensors, lambda flat: dist.broadcast(flat, 0))


@torch.no_grad()
def _in_one_transfer(tensors: Iterable[Tensor | None], transfer: Callable[[Tensor], Any]) -> None:
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None:
            by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        transfer(flat)
        found = flat.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [part.view(tensor.shape) for tensor, part in zip(group, found)])


def greatest_over_processes(tensor: Tensor) -> None:
    """Elementwise maximum, in place."""
    if together():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)


@torch.no_grad()
def gather_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of each tensor [B, ...] those of all processes, by rank: [processes * B, ...]. One transfer, without graph."""
    if not together():
        return list(tensors)
    pieces = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    own = torch.cat(pieces)
    everyone = own.new_empty(process_count(), own.numel())
    dist.all_gather(list(everyone), own)
    parts = everyone.split([piece.numel() for piece in pieces], 1)
    # A copy of its own has the place in memory that other types of number need.
    return [part.clone().view(-1).view(x.dtype).view(-1, *x.shape[1:]) for part, x in zip(parts, tensors)]


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
    follow_first(tensors)


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
