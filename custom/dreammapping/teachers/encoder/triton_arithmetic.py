"""Group normalization over channels-last tensors in Triton: see arithmetic.Arithmetic for what each operation means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .arithmetic import Moments, Norm


@dataclass(frozen=True)
class Launch:
    """How the work is cut up."""

    tile: int = 2048
    """Elements a program holds at a time: rows times channels, rounded up to a power of two."""
    warps: int = 4
    programs: int = 1024
    """Programs that a sum over all images is spread over, about."""
    longest: int = 256
    """Runs per image at most: the second kernel takes all of them at once."""
    stages: int = 3
    """Tiles of a run that are on their way at a time; above 1 they come through shared memory."""


class TritonArithmetic:
    """See arithmetic.Arithmetic. For CUDA tensors of 16 or 32 bits."""

    def __init__(self, launch: Launch = Launch()) -> None:
        self.launch = launch

    def moments(self, x: Tensor, bias: Tensor | None) -> Moments:
        return self._summed(x, None, bias, x)

    def add(self, x: Tensor, y: Tensor, bias: Tensor) -> tuple[Tensor, Moments]:
        total = torch.empty_like(_dense(x))
        return total, self._summed(x, y, bias, total)

    def statistics(self, moments: Moments, rows: int, norm: Norm) -> Tensor:
        pictures, runs, channels = moments.mean.shape
        result = moments.mean.new_empty(pictures, norm.groups, 2)
        kernels.merge_moments[(norm.groups, pictures)](
            moments.mean, moments.deviation, result, rows, moments.run, runs, norm.eps,
            C=channels, **self._merging(norm, channels, runs),
        )  # fmt: skip
        return result

    def normalize(self, x: Tensor, bias: Tensor | None, statistics: Tensor, norm: Norm) -> Tensor:
        x = _dense(x)
        y, cut = torch.empty_like(x), self._cut(x)
        kernels.normalize[self._tiles(x, cut)](
            x, x if bias is None else bias, statistics, norm.weight, norm.offset, y, _rows(x),
            GROUPS=norm.groups, BIASED=bias is not None, SILU=norm.silu, **cut,
        )  # fmt: skip
        return y

    def input_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        bias: Tensor | None,
        statistics: Tensor,
        norm: Norm,
        further: Tensor | None,
    ) -> Tensor:
        gradient, x = _dense(gradient), _dense(x)
        pictures, channels, rows, (run, runs) = len(x), x.shape[1], _rows(x), self._runs(x)
        plain, along = statistics.new_empty(2, pictures, runs, channels)
        means, y = torch.empty_like(statistics), torch.empty_like(x)
        read = (gradient, x, x if bias is None else bias, statistics, norm.weight, norm.offset)
        cut = {"GROUPS": norm.groups, "BIASED": bias is not None, "SILU": norm.silu, **self._cut(x)}
        kernels.gradient_sums[(runs, pictures)](*read, plain, along, rows, run, **self._steps(run, cut), **cut)
        kernels.merge_sums[(norm.groups, pictures)](
            plain, along, means, rows, runs, C=channels, **self._merging(norm, channels, runs)
        )
        added = x if further is None else _dense(further)
        kernels.input_gradient[self._tiles(x, cut)](*read, means, added, y, rows, ADDS=further is not None, **cut)
        return y

    def _summed(self, x: Tensor, y: Tensor | None, bias: Tensor | None, total: Tensor) -> Moments:
        x, (run, runs), cut = _dense(x), self._runs(x), self._cut(x)
        mean, deviation = x.new_empty(2, len(x), runs, x.shape[1], dtype=torch.float32)
        kernels.moments[(runs, len(x))](
            x, x if y is None else _dense(y), x if bias is None else bias, total, mean, deviation, _rows(x), run,
            **self._steps(run, cut), BIASED=bias is not None, ADDS=y is not None, **cut,
        )  # fmt: skip
        return Moments(mean, deviation, run)

    def _cut(self, x: Tensor) -> dict[str, int]:
        block = triton.next_power_of_2(x.shape[1])
        return {"C": x.shape[1], "BC": block, "BR": max(self.launch.tile // block, 1), "num_warps": self.launch.warps}

    def _runs(self, x: Tensor) -> tuple[int, int]:
        """Rows of a run, a multiple of what a program holds at a time, and the number of runs in an image."""
        rows, step = _rows(x), self._cut(x)["BR"]
        wanted = min(max(self.launch.programs // len(x), 1), self.launch.longest)
        run = triton.cdiv(triton.cdiv(rows, wanted), step) * step
        return run, triton.cdiv(rows, run)

    def _steps(self, run: int, cut: dict[str, int]) -> dict[str, int]:
        return {"STEPS": run // cut["BR"], "STAGES": self.launch.stages}

    @staticmethod
    def _tiles(x: Tensor, cut: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(_rows(x), cut["BR"]), len(x)

    @staticmethod
    def _merging(norm: Norm, channels: int, runs: int) -> dict[str, int]:
        block = triton.next_power_of_2(channels // norm.groups)
        return {"GROUPS": norm.groups, "BS": triton.next_power_of_2(runs), "BW": block}


def _rows(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def _dense(x: Tensor) -> Tensor:
    """The kernels count pixels themselves; usually x is channels-last already and nothing happens."""
    return x.contiguous(memory_format=torch.channels_last)
