"""Batch normalization over the whole batch, also where several processes hold its parts.

torch's SyncBatchNorm does the same on GPUs only; this one runs on any device, and so is tested without one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..processes import GatherRows, process_count, together


class WholeBatchNorm2d(nn.BatchNorm2d):
    """[B,C,h,w] -> the same. Alone it is nn.BatchNorm2d to the bit, with its state dict; every process has the same B."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and together()):
            return super().forward(x)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        means, variances = GatherRows.apply(torch.stack([mean, variance])).unbind(1)  # [processes,C] each
        mean = means.mean(0)
        # Not E[x^2] - E[x]^2, which cancels.
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._remember(mean.detach(), variance.detach(), process_count() * x.numel() // x.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x - _by_channel(mean)) * _by_channel(scale) + _by_channel(self.bias)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Running statistics, the unbiased variance as torch keeps it."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def _by_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]
