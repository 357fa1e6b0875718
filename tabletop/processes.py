"""Training on several GPUs: one process each, started by torchrun, that average their gradients.

    torchrun --nproc-per-node 2 -m tabletop.train_text_to_image ...

Without torchrun there is one process and nothing here does anything.
"""
from __future__ import annotations

import os
from typing import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> int:
    """Join the processes that torchrun started; this one's number, 0 if it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank()


def together() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this is the process that writes files and reports."""
    return not together() or dist.get_rank() == 0


def after_first(write: Callable[[], None]) -> None:
    """The first process calls `write`, the others wait for it."""
    if is_first():
        write()
    if together():
        dist.barrier()


def share(tensors: list[Tensor]) -> None:
    """Overwrite the tensors with the first process's."""
    if together():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def average(tensors: list[Tensor]) -> None:
    """Replace the tensors by their mean over the processes, in one exchange."""
    if not together():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = [part.view_as(tensor) for part, tensor in zip(flat.split([t.numel() for t in tensors]), tensors)]
    torch._foreach_copy_(tensors, parts)
