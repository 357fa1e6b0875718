from __future__ import annotations

import torch
from dreammapping.transfers import Arriving, to_device


def test_what_arrives_is_what_was_sent():
    x = torch.arange(3.0)
    arriving = Arriving(x)
    x += 1  # in place, before anyone has looked
    assert arriving.at_once and torch.equal(arriving.read(), torch.arange(3.0))


def test_a_cpu_tensor_stays_itself():
    x = torch.ones(2)
    assert to_device(x, torch.device("cpu")) is x
