"""Random cameras around the origin: the data of text to 3D.

Training batch k is a pure function of (seed, k): sampling ranges and image size follow from k, random numbers from a
generator seeded with both; of several processes each keeps its rows. So the module keeps no random state, and a resumed
run sees the batches it would have seen: at the start of an epoch the dataset asks the trainer how many batches were
trained, and counts on from there. Lightning fetches one batch ahead; thrown away on interruption, it is drawn again.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, List, Tuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from threestudio import register
from threestudio.data import sampling
from threestudio.data.camera_batches import camera_matrices, camera_rays, limits, size_lists
from threestudio.errors import ConfigError
from threestudio.utils.base import Updateable
from threestudio.utils.cameras import get_ray_directions
from threestudio.utils.config import parse_structured
from threestudio.utils.processes import own_rows


@dataclass
class RandomCameraDataModuleConfig:
    """Angles in degrees, lengths in world units. `height`, `width`, `batch_size` are numbers or lists of equal
    length."""

    height: Any = 64
    width: Any = 64
    batch_size: Any = 1
    resolution_milestones: List[int] = field(default_factory=lambda: [])
    """Steps at which the next entry of the lists takes over; one fewer than their length."""
    eval_height: int = 512
    eval_width: int = 512
    eval_batch_size: int = 1
    """Accepted for upstream's configs; evaluation always loads one view at a time."""
    n_val_views: int = 1
    n_test_views: int = 120
    elevation_range: Tuple[float, float] = (-10, 90)
    azimuth_range: Tuple[float, float] = (-180, 180)
    camera_distance_range: Tuple[float, float] = (1, 1.5)
    fovy_range: Tuple[float, float] = (40, 70)
    camera_perturb: float = 0.1
    """Half width of the uniform noise on each coordinate of the position."""
    center_perturb: float = 0.2
    """Standard deviation of the normal noise on the point looked at."""
    up_perturb: float = 0.02
    """Standard deviation of the normal noise on the up vector."""
    light_position_perturb: float = 1.0
    light_distance_range: Tuple[float, float] = (0.8, 1.5)
    eval_elevation_deg: float = 15.0
    eval_camera_distance: float = 1.5
    eval_fovy_deg: float = 70.0
    light_sample_strategy: str = "dreamfusion"
    """"dreamfusion" (near the camera) or "magic3d" (in a cone about it)."""
    batch_uniform_azimuth: bool = True
    """Stratify the azimuth over the batch."""
    progressive_until: int = 0
    """Step at which the ranges of elevation and azimuth, which grow from the front view, are complete; 0: at once."""
    rays_d_normalize: bool = True
    """False leaves directions with depth 1 along the optical axis."""


class RandomCameraIterableDataset(IterableDataset, Updateable):
    """Endless training cameras. `collate` makes a batch and is what subclasses override; it ignores its argument.

    Attributes of the current step: `height, width, batch_size, directions_unit_focal, elevation_range, azimuth_range`.
    With `rays_later` batches come without rays_o and rays_d, which `rays` makes where the batch is then.
    State: `next_index`, the number k of the next batch, set from `first_index()` whenever an iteration starts.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg: RandomCameraDataModuleConfig = cfg
        if cfg.light_sample_strategy not in ("dreamfusion", "magic3d"):
            raise ConfigError(
                f"data.light_sample_strategy is {cfg.light_sample_strategy!r}; it must be 'dreamfusion' or 'magic3d'."
            )
        (self.heights, self.widths, self.batch_sizes), self.resolution_milestones = size_lists(cfg)
        self.directions_unit_focals = [
            get_ray_directions(H=height, W=width, focal=1.0) for height, width in zip(self.heights, self.widths)
        ]
        self._full_elevation_range = limits(cfg, "elevation_range")
        self._full_azimuth_range = limits(cfg, "azimuth_range")
        self.camera_distance_range = limits(cfg, "camera_distance_range")
        self.fovy_range = limits(cfg, "fovy_range")
        self.light_distance_range = limits(cfg, "light_distance_range")
        if not 0.0 < self.fovy_range[0] <= self.fovy_range[1] < 180.0:
            raise ConfigError(f"data.fovy_range is {self.fovy_range}; angles must lie between 0 and 180 degrees.")
        self.seed = torch.initial_seed()
        self.first_index: Callable[[], int] = lambda: 0
        self.next_index = 0
        self.rays_later = False
        self._on_device: dict[tuple[int, int, torch.device], Tensor] = {}
        self.update_step(0, 0)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Set the attributes of the class docstring for a step."""
        stage = bisect.bisect_right(self.resolution_milestones, global_step)
        self.height, self.width, self.batch_size = self.heights[stage], self.widths[stage], self.batch_sizes[stage]
        self.directions_unit_focal = self.directions_unit_focals[stage]
        self.progressive_view(global_step)

    def progressive_view(self, global_step: int) -> None:
        """Ranges of elevation and azimuth at a step, between the front view and the full ranges.

        Unlike upstream, step 0 without `progressive_until` has the full ranges, not a single view.
        """
        until = self.cfg.progressive_until
        r = 1.0 if until <= 0 else min(1.0, global_step / (until + 1))

        def between(start: float, limits: tuple[float, float]) -> tuple[float, float]:
            return (1 - r) * start + r * limits[0], (1 - r) * start + r * limits[1]

        self.elevation_range = between(self.cfg.eval_elevation_deg, self._full_elevation_range)
        self.azimuth_range = between(0.0, self._full_azimuth_range)

    def __iter__(self) -> Iterator[dict]:
        self.next_index = self.first_index()
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        """The next batch, `batch_at(next_index)`."""
        index = self.next_index
        self.next_index += 1
        return self.batch_at(index)

    def batch_at(self, index: int) -> dict[str, Any]:
        """Batch number `index`; keys and shapes as in `_draw`. Sets the step's attributes on the way."""
        self.update_step(0, index)
        return self._draw(sampling.generator_for(self.seed, index))

    def rays(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """rays_o, rays_d [B,H,W,3] of a batch without them, on its device."""
        height, width, device = batch["height"], batch["width"], batch["c2w"].device
        if (height, width, device) not in self._on_device:
            self._on_device[height, width, device] = get_ray_directions(H=height, W=width, focal=1.0).to(device)
        unit = self._on_device[height, width, device]
        return camera_rays(batch["c2w"], batch["fovy"], height, unit, self.cfg.rays_d_normalize)

    def _draw(self, generator: torch.Generator) -> dict[str, Any]:
        """rays_o, rays_d [B,H,W,3]; mvp_mtx, proj_mtx, c2w [B,4,4]; camera_positions, light_positions [B,3]; elevation,
        azimuth [B] degrees and camera_distances [B], all three before perturbation; fovy [B] radians; height, width.
        B is this process's share of the batch."""
        cfg, count = self.cfg, self.batch_size
        elevation = sampling.draw_elevation(count, self.elevation_range, generator)
        azimuth = sampling.draw_azimuth(count, self.azimuth_range, cfg.batch_uniform_azimuth, generator)
        distance = sampling.uniform(count, self.camera_distance_range, generator)
        fovy = torch.deg2rad(sampling.uniform(count, self.fovy_range, generator))
        position = sampling.spherical_to_cartesian(elevation, azimuth, distance)
        position = position + (torch.rand(count, 3, generator=generator) * 2 - 1) * cfg.camera_perturb
        center = torch.randn(count, 3, generator=generator) * cfg.center_perturb
        up = torch.tensor([0.0, 0.0, 1.0]) + torch.randn(count, 3, generator=generator) * cfg.up_perturb
        c2w = sampling.look_at(position, center, up, azimuth)
        light_distance = sampling.uniform(count, self.light_distance_range, generator)
        if cfg.light_sample_strategy == "dreamfusion":
            perturb = cfg.light_position_perturb
            lights = sampling.draw_lights_near_camera(position, light_distance, perturb, generator)
        else:
            lights = sampling.draw_lights_in_cone(position, light_distance, generator)
        own = own_rows(count)
        c2w, fovy = c2w[own], fovy[own]
        made = (c2w, fovy, self.height, self.directions_unit_focal, cfg.rays_d_normalize)
        return {
            **({} if self.rays_later else camera_rays(*made)),
            **camera_matrices(c2w, fovy, self.height, self.width),
            "camera_positions": position[own],
            "light_positions": lights[own],
            "elevation": elevation[own],
            "azimuth": azimuth[own],
            "camera_distances": distance[own],
            "height": self.height,
            "width": self.width,
        }


class RandomCameraDataset(Dataset):
    """Evaluation cameras on a circle at fixed elevation, distance and field of view, lit from the camera.

    Split "val" takes `n_val_views` azimuths from 0 without 360; any other split `n_test_views` from 0 to 360 inclusive.
    """

    def __init__(self, cfg: Any, split: str) -> None:
        super().__init__()
        self.cfg: RandomCameraDataModuleConfig = cfg
        self.split = split
        self.n_views = cfg.n_val_views if split == "val" else cfg.n_test_views
        if self.n_views < 1:
            raise ConfigError(
                f"data.n_{'val' if split == 'val' else 'test'}_views is {self.n_views}; it must be at least 1."
            )
        if split == "val":
            self.azimuth_deg = torch.linspace(0, 360.0, self.n_views + 1)[: self.n_views]
        else:
            self.azimuth_deg = torch.linspace(0, 360.0, self.n_views)
        self.elevation_deg = torch.full((self.n_views,), float(cfg.eval_elevation_deg))
        self.camera_distances = torch.full((self.n_views,), float(cfg.eval_camera_distance))
        self.fovy = torch.deg2rad(torch.full((self.n_views,), float(cfg.eval_fovy_deg)))
        self.camera_positions = sampling.spherical_to_cartesian(
            self.elevation_deg, self.azimuth_deg, self.camera_distances
        )
        self.light_positions = self.camera_positions
        up = torch.tensor([0.0, 0.0, 1.0]).expand(self.n_views, 3)
        center = torch.zeros(self.n_views, 3)
        self.c2w = sampling.look_at(self.camera_positions, center, up, self.azimuth_deg)
        self.directions_unit_focal = get_ray_directions(H=cfg.eval_height, W=cfg.eval_width, focal=1.0)

    def __len__(self) -> int:
        return self.n_views

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The keys of a training batch without the leading axis, and `index`. Rays are made here, one view at a
        time."""
        if not 0 <= index < self.n_views:
            raise IndexError(index)
        cfg, view = self.cfg, slice(index, index + 1)
        c2w, fovy = self.c2w[view], self.fovy[view]
        rays = camera_rays(c2w, fovy, cfg.eval_height, self.directions_unit_focal, cfg.rays_d_normalize)
        camera = rays | camera_matrices(c2w, fovy, cfg.eval_height, cfg.eval_width)
        return {
            "index": index,
            **{key: value[0] for key, value in camera.items()},
            "camera_positions": self.camera_positions[index],
            "light_positions": self.light_positions[index],
            "elevation": self.elevation_deg[index],
            "azimuth": self.azimuth_deg[index],
            "camera_distances": self.camera_distances[index],
            "height": cfg.eval_height,
            "width": cfg.eval_width,
        }

    def collate(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Default collation; `height` and `width` stay plain integers."""
        return {**default_collate(batch), "height": self.cfg.eval_height, "width": self.cfg.eval_width}


@register("random-camera-datamodule")
class RandomCameraDataModule(pl.LightningDataModule):
    """Random cameras to train with, a circle of cameras to validate and test."""

    cfg: RandomCameraDataModuleConfig

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(RandomCameraDataModuleConfig, {} if cfg is None else cfg)

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets of a stage (fit, validate, test, predict; None: all)."""
        if stage in (None, "fit"):
            self.train_dataset = RandomCameraIterableDataset(self.cfg)
            self.train_dataset.first_index = self._batches_trained
            self.train_dataset.rays_later = self._on_cuda
        if stage in (None, "fit", "validate"):
            self.val_dataset = RandomCameraDataset(self.cfg, "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = RandomCameraDataset(self.cfg, "test")

    def _batches_trained(self) -> int:
        """Batches the trainer has finished, checkpointed runs included: the number of the next one."""
        trainer = self.trainer
        return 0 if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.total.processed

    @property
    def _on_cuda(self) -> bool:
        """Whether the trainer works on a GPU. Then rays are made there: they are nearly all of a batch's bytes."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook: completes a training batch on its device."""
        if isinstance(batch, dict) and "c2w" in batch and "rays_o" not in batch:
            batch |= self.train_dataset.rays(batch)
        return batch

    def train_dataloader(self) -> DataLoader:
        # Workers would hold copies of the dataset, and drawing a camera is cheaper than sending it. A pinned batch goes
        # to the device while that works.
        dataset = self.train_dataset
        return DataLoader(dataset, batch_size=None, num_workers=0, collate_fn=dataset.collate, pin_memory=self._on_cuda)

    def _eval_loader(self, dataset: RandomCameraDataset) -> DataLoader:
        return DataLoader(dataset, batch_size=1, num_workers=0, collate_fn=dataset.collate)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader:
        return self._eval_loader(self.test_dataset)
