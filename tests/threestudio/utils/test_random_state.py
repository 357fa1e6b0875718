from __future__ import annotations

import io
import random

import numpy as np
import torch

from threestudio.utils.random_state import capture_random_state, restore_random_state


def draw():
    return random.random(), random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.randn(3).tolist()


def test_the_state_survives_a_checkpoint_without_pickled_objects():
    random.gauss(0, 1), np.random.randn()  # leave a half-used pair behind in both generators
    buffer = io.BytesIO()
    torch.save(capture_random_state(), buffer)
    first, second = draw(), draw()
    assert first != second
    buffer.seek(0)
    restore_random_state(torch.load(buffer, weights_only=True))
    assert (draw(), draw()) == (first, second)
