"""CUDA graphs as a CPU can play them: the recording calls the function again and writes into the same outputs."""

from __future__ import annotations

import torch


class PlayedRecorder:
    """A `replay.Recorder`. `made` counts recordings; `fails` makes the next ones raise."""

    def __init__(self) -> None:
        self.made, self.fails = 0, False

    def covers(self, device):
        return True

    def warm_up(self, function):
        for _ in range(3):
            function()

    def pool(self, shared):
        return None

    def record(self, function, pool):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")
        self.made += 1
        outputs = tuple(y.detach().clone() for y in function())

        def replay():
            found = function()
            with torch.no_grad():
                for output, value in zip(outputs, found):
                    output.copy_(value)

        return replay, outputs
