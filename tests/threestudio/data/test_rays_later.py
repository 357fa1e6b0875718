"""Rays made where the batch is used: the same numbers, without the bytes."""

from __future__ import annotations

import pytest
import torch
from threestudio.data.uncond import RandomCameraDataModule

LISTS = {"height": [8, 16], "width": [12, 16], "batch_size": [2, 1], "resolution_milestones": [1]}


@pytest.mark.parametrize("sizes", [{"height": 8, "width": 12, "batch_size": 2}, LISTS], ids=["one size", "lists"])
@pytest.mark.parametrize("normalize", [True, False])
def test_completed_batches_equal_whole_ones(sizes, normalize):
    whole, later = (RandomCameraDataModule({**sizes, "rays_d_normalize": normalize}) for _ in range(2))
    for module in (whole, later):
        module.setup("fit")
    assert later.train_dataset.rays_later is False  # without a trainer on a GPU
    later.train_dataset.seed = whole.train_dataset.seed
    later.train_dataset.rays_later = True
    for index in range(3):
        expected, short = whole.train_dataset.batch_at(index), later.train_dataset.batch_at(index)
        assert "rays_o" not in short and "rays_d" not in short
        found = later.on_after_batch_transfer(short, 0)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value


def test_whole_batches_and_others_pass_as_they_are():
    module = RandomCameraDataModule({"height": 4, "width": 4})
    module.setup("fit")
    batch = module.train_dataset.batch_at(0)
    rays = batch["rays_d"]
    assert module.on_after_batch_transfer(batch, 0)["rays_d"] is rays
    assert module.on_after_batch_transfer([1], 0) == [1]
