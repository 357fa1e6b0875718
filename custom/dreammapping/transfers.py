"""Small tensors between host and device, without one waiting for the other. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor to `device` without waiting for the work queued there (a pageable copy would)."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class Arriving:
    """A tensor on its way to the host. Asked for a step later, it has long been there, and nothing has waited."""

    def __init__(self, x: Tensor) -> None:
        x = x.detach()
        self._event: torch.cuda.Event | None = None
        if x.device.type == "cuda":
            self._value = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(x.device))
        else:
            self._value = x.cpu().clone()  # what it was now, whatever happens to x in place

    @property
    def at_once(self) -> bool:
        """Whether the tensor was on the host already, so that reading it now costs nothing."""
        return self._event is None

    def read(self) -> Tensor:
        """The tensor on the CPU; waits until it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._value
