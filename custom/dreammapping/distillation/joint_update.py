"""What a loss trains, by several processes: each does the same work for the whole batch.

An operator of a million parameters is many small kernels, which take about as long for four images as for two. Shared out,
each of its normalizations would wait for all processes twice, and nothing of it could be recorded. So its inputs are
gathered, in one transfer, and everything else is as with one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..processes import Rows, follow_first, gather_rows
from .draw import NoisyDraw
from .loss import ScoreLoss, ScoreResult, Update
from .step_tensors import flatten, rebuild


def joint_update(
    update: Update, loss: ScoreLoss, draw: NoisyDraw, answers: Any
) -> tuple[ScoreResult, Mapping[str, Tensor]]:
    """`update` of the whole batch, its residual cut down to this process's images."""
    rows = Rows.of_process(len(draw.clean))
    whole, whole_answers = rebuild(draw, answers, gather_rows(flatten(draw, answers)))
    result, auxiliary = update(replace(whole, t_host=draw.t_whole, t_earlier=None), whole_answers)
    # Sums without a fixed order, or another model of GPU, let the copies come apart in their last bits.
    follow_first([x for x in (*loss.parameters(), *loss.buffers()) if x.is_floating_point()])
    return replace(result, residual=rows.take(result.residual)), auxiliary
