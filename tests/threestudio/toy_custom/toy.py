"""A tiny system and data module whose training draws from every global generator; loaded as an extension by tests."""
from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from threestudio import find, register
from threestudio.systems.base import BaseSystem
from threestudio.utils.base import BaseModule, Updateable
from threestudio.utils.config import parse_structured


class EndlessBatches(IterableDataset, Updateable):
    def __iter__(self):
        while True:
            yield torch.ones(3)


@dataclass
class ToyDataConfig:
    width: int = 3


@register("toy-data")
class ToyData(pl.LightningDataModule):
    cfg: ToyDataConfig

    def __init__(self, cfg=None):
        super().__init__()
        self.cfg = parse_structured(ToyDataConfig, cfg)

    def train_dataloader(self):
        return DataLoader(EndlessBatches(), batch_size=None)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 3)), batch_size=1)

    test_dataloader = predict_dataloader = val_dataloader


@register("toy-geometry")
class ToyGeometry(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        width: int = 3
        scale: float = 1.0

    def configure(self):
        self.weight = nn.Parameter(torch.zeros(self.cfg.width))
        self.register_buffer("ends", torch.zeros(()))

    def update_step_end(self, epoch, global_step):
        if self.training:
            self.ends += torch.rand(())


@register("toy-system")
class ToySystem(BaseSystem):
    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = "toy-geometry"
        geometry: dict = field(default_factory=dict)
        manual: bool = False

    def configure(self):
        self.geometry = find(self.cfg.geometry_type)(self.cfg.geometry)
        self.automatic_optimization = not self.cfg.manual

    def training_step(self, batch, batch_idx):
        noise = torch.randn(3) + random.random() + float(np.random.rand())
        loss = ((self.geometry.weight - batch - noise) ** 2).sum() * self.C(self.cfg.loss.get("lambda_toy", 1.0))
        self.log("train/loss", loss)
        if self.cfg.manual:
            opt = self.optimizers()
            opt.zero_grad()
            self.manual_backward(loss)
            opt.step()
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        torch.rand(7)
        random.random()

    def test_step(self, batch, batch_idx):
        self.save_json(f"it{self.true_global_step}-test.json", {"weight": self.geometry.weight.tolist()})

    def predict_step(self, batch, batch_idx):
        self.save_json(f"it{self.true_global_step}-export.json", {"weight": self.geometry.weight.tolist()})
