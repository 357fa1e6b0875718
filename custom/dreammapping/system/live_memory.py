"""How many bytes of tensors live at once while a piece of code runs, counted without doing the work.

On torch's `meta` device tensors have a shape and a type but no values. Running the real modules there, forward and
backward, makes and frees the tensors of a real run, so their greatest sum is known in a second, from the shapes alone.
What it cannot see: scratch space inside kernels and the allocator's rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Context in which the bytes of tensors made inside it are counted; views count once, and those of tensors from
    outside not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most bytes alive at once so far."""
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # What is used for the first time comes from outside, and so does every view of it.
        for storage in _storages((args, kwargs)):
            self._count(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._count(storage, storage.nbytes())
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class FusedAttention(TorchFunctionMode):
    """Attention without its matrix of weights, as GPUs compute it: the meta device would write the matrix out."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and not torch.is_grad_enabled():
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def peak_bytes(work: Callable[..., Any], *inputs: Any) -> int:
    """Most bytes of tensors alive at once while `work(*inputs)` runs, of those it makes itself."""
    with FusedAttention(), LiveBytes() as live:
        work(*inputs)
    return live.peak
