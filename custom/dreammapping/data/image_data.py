"""The data of text to 2D: no cameras, only how many pictures take part in a step.

Guidance asks for cameras all the same. It gets one that never moves, so that a loss that is told the camera (VSD)
learns nothing from it. Which pictures take part is decided by the system, which knows how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import pytorch_lightning as pl
import threestudio
import torch
from threestudio.utils.config import parse_structured
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import ConfigError


@dataclass
class ImageDataModuleConfig:
    """What a step works on."""

    batch_size: Optional[int] = None
    """Pictures per step, drawn at random; if it is more than there are, some get several noises in one step.
    None: each picture once."""


def fixed_view(batch_size: int | None) -> dict[str, Any]:
    """A batch: `batch_size`, and one camera at the front: elevation, azimuth [1] in degrees, camera_distances [1],
    c2w and mvp_mtx [1,4,4]."""
    zero, eye = torch.zeros(1), torch.eye(4)[None]
    cameras = {"elevation": zero, "azimuth": zero, "camera_distances": zero + 1, "c2w": eye, "mvp_mtx": eye}
    return {"batch_size": batch_size, **cameras}


class TrainingSteps(IterableDataset):
    """The same batch for ever. It has no random numbers, and so no state."""

    def __init__(self, batch_size: int | None) -> None:
        super().__init__()
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield fixed_view(self.batch_size)


class OneLook(Dataset):
    """One batch, at which everything is shown."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index != 0:
            raise IndexError(index)
        return fixed_view(None)


@threestudio.register("dreammapping-image-datamodule")
class ImageDataModule(pl.LightningDataModule):
    """Endless steps to train with, one look to validate and test."""

    cfg: ImageDataModuleConfig

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(ImageDataModuleConfig, {} if cfg is None else cfg)
        if self.cfg.batch_size is not None and self.cfg.batch_size < 1:
            raise ConfigError(
                f"data.batch_size is {self.cfg.batch_size}; it must be at least 1, or null for all pictures"
            )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TrainingSteps(self.cfg.batch_size), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(OneLook(), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(OneLook(), batch_size=None)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(OneLook(), batch_size=None)
