"""The arithmetic without values: results of the right shape and type, empty. For counting memory on the meta device."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import Moments, Norm, wide

RUNS = 256
"""Runs per image, at most as many as the kernels use (triton_arithmetic.Launch.longest)."""


class ShapeArithmetic:
    """See arithmetic.Arithmetic. Makes the tensors that triton_arithmetic.TritonArithmetic makes, and no others: what
    plain torch writes down between them (TorchArithmetic), the kernels keep in registers."""

    def moments(self, x: Tensor, bias: Tensor | None) -> Moments:
        rows = x.shape[2] * x.shape[3]
        run = -(-rows // RUNS)
        mean, deviation = x.new_empty(2, len(x), -(-rows // run), x.shape[1], dtype=wide(x.dtype))
        return Moments(mean, deviation, run)

    def add(self, x: Tensor, y: Tensor, bias: Tensor) -> tuple[Tensor, Moments]:
        total = torch.empty_like(x)
        return total, self.moments(total, None)

    def statistics(self, moments: Moments, rows: int, norm: Norm) -> Tensor:
        return moments.mean.new_empty(len(moments.mean), norm.groups, 2)

    def normalize(self, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm) -> Tensor:
        return torch.empty_like(x)

    def input_gradient(
        self, gradient: Tensor, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm, further: Tensor | None
    ) -> Tensor:
        sums = self.moments(x, None)  # two of them, as large as these
        means, result = torch.empty_like(statistics), torch.empty_like(x)
        del sums, means
        return result
