"""Cameras: shapes, placement, ranges, schedules, purity, and a resumed run sees what an uninterrupted one sees."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch

from threestudio import find
from threestudio.data.sampling import draw_elevation, draw_lights_in_cone, generator_for, look_at
from threestudio.data.uncond import RandomCameraDataModuleConfig, RandomCameraDataset, RandomCameraIterableDataset
from threestudio.errors import ConfigError
from threestudio.utils.config import parse_structured


def config(**values):
    return parse_structured(
        RandomCameraDataModuleConfig, {"height": 6, "width": 8, "eval_height": 4, "eval_width": 5, **values}
    )


def still(**values):
    return config(camera_perturb=0.0, center_perturb=0.0, up_perturb=0.0, **values)


def assert_orthonormal(c2w):
    rotation = c2w[:, :3, :3].double()
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).double().expand(len(c2w), 3, 3), atol=1e-5)
    assert torch.allclose(torch.det(rotation), torch.ones(len(c2w)).double(), atol=1e-5)
    assert torch.equal(c2w[:, 3], torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(len(c2w), 4))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_batches_have_the_documented_keys_shapes_and_orthonormal_cameras(count):
    batch = RandomCameraIterableDataset(config(batch_size=count)).collate({})
    shapes = {
        "rays_o": (count, 6, 8, 3), "rays_d": (count, 6, 8, 3), "mvp_mtx": (count, 4, 4), "proj_mtx": (count, 4, 4),
        "c2w": (count, 4, 4), "camera_positions": (count, 3), "light_positions": (count, 3), "elevation": (count,),
        "azimuth": (count,), "camera_distances": (count,), "fovy": (count,),
    }  # fmt: skip
    assert set(batch) == {*shapes, "height", "width"}
    for key, shape in shapes.items():
        assert batch[key].shape == shape and batch[key].dtype == torch.float32, key
    assert (batch["height"], batch["width"]) == (6, 8)
    assert_orthonormal(batch["c2w"])


@pytest.mark.parametrize("split, views", [("val", 3), ("test", 3), ("val", 1)])
def test_evaluation_views_lie_on_the_circle(split, views):
    data = RandomCameraDataset(config(n_val_views=views, n_test_views=views), split)
    batch = data.collate([data[views - 1]])
    end = 360.0 * (views - 1) / views if split == "val" else 360.0
    assert torch.allclose(batch["azimuth"], torch.tensor([end]))
    assert batch["index"].dtype == torch.int64 and batch["height"] == 4 and batch["rays_d"].shape == (1, 4, 5, 3)
    assert set(batch) == {*RandomCameraIterableDataset(config()).collate({}), "index"}
    assert_orthonormal(data.c2w)
    assert torch.equal(batch["light_positions"], batch["camera_positions"])
    with pytest.raises(IndexError):
        data[views]


def test_the_front_view_stands_on_x_with_right_y_and_up_z():
    data = RandomCameraDataset(config(eval_elevation_deg=0.0, eval_camera_distance=2.0), "val")
    expected = torch.tensor([[0.0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert torch.allclose(data.c2w[0], expected, atol=1e-6)


def test_unperturbed_cameras_look_at_the_origin_from_where_their_angles_say():
    batch = RandomCameraIterableDataset(still(batch_size=5)).collate({})
    position, forward = batch["camera_positions"], -batch["c2w"][:, :3, 2]
    assert torch.allclose(position + forward * batch["camera_distances"][:, None], torch.zeros(5, 3), atol=1e-5)
    assert torch.allclose(position.norm(dim=-1), batch["camera_distances"])
    assert torch.allclose(
        torch.rad2deg(torch.asin(position[:, 2] / position.norm(dim=-1))), batch["elevation"], atol=1e-3
    )
    assert torch.allclose(torch.rad2deg(torch.atan2(position[:, 1], position[:, 0])), batch["azimuth"], atol=1e-3)
    assert torch.equal(batch["c2w"][:, :3, 3], position)


@pytest.mark.parametrize("elevation", [90.0, -90.0])
def test_a_camera_over_the_pole_continues_the_meridian(elevation):
    angle = torch.tensor([30.0])
    position = torch.tensor([[0.0, 0.0, math.copysign(2.0, elevation)]])
    c2w = look_at(position, torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]), angle)
    assert_orthonormal(c2w)
    assert torch.allclose(c2w[0, :3, 0], torch.tensor([-0.5, math.sqrt(0.75), 0.0]), atol=1e-6)


def test_draws_stay_in_range_and_azimuths_are_stratified():
    data = RandomCameraIterableDataset(still(batch_size=4, azimuth_range=[-180, 180], elevation_range=[-10, 45]))
    for k in range(50):
        batch = data.batch_at(k)
        assert batch["elevation"].min() >= -10.001 and batch["elevation"].max() <= 45.001
        assert ((batch["azimuth"] + 180) // 90).tolist() == [0, 1, 2, 3]
        assert batch["camera_distances"].min() >= 1.0 and batch["camera_distances"].max() <= 1.5
        assert batch["fovy"].min() >= math.radians(39.999) and batch["fovy"].max() <= math.radians(70.001)
        assert (
            0.8 <= batch["light_positions"].norm(dim=-1).min() and batch["light_positions"].norm(dim=-1).max() <= 1.5001
        )


def test_half_of_the_batches_draw_elevations_uniform_in_area():
    """Over -90..90, E[sin^2] is 1/2 uniform in angle and 1/3 in area; the coin mixes them to 5/12."""
    squares = [
        torch.sin(torch.deg2rad(draw_elevation(200, (-90.0, 90.0), generator_for(0, k)))).square().mean()
        for k in range(300)
    ]
    assert abs(float(torch.stack(squares).mean()) - 5 / 12) < 4 * (1 / 12) / math.sqrt(300)
    assert {round(float(value) * 6) for value in squares} == {2, 3}


def test_cone_lights_are_within_60_degrees_of_the_camera():
    position = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 2.0], [0.0, 0.0, -1.0]]).repeat(30, 1)
    distance = torch.linspace(0.8, 1.5, 90)
    lights = draw_lights_in_cone(position, distance, generator_for(1, 1))
    cosine = torch.cosine_similarity(lights, position, dim=-1)
    assert cosine.min() > 0.499 and cosine.min() < 0.9
    assert torch.allclose(lights.norm(dim=-1), distance, atol=1e-5)


def test_progressive_ranges_grow_from_the_front_view():
    data = RandomCameraIterableDataset(config(progressive_until=9, eval_elevation_deg=15.0))
    for step, elevation, azimuth in [(0, (15, 15), (0, 0)), (5, (2.5, 52.5), (-90, 90)), (10, (-10, 90), (-180, 180))]:
        data.progressive_view(step)
        assert data.elevation_range == pytest.approx(elevation) and data.azimuth_range == pytest.approx(azimuth)
    data = RandomCameraIterableDataset(config())
    data.progressive_view(0)
    assert data.azimuth_range == (-180, 180)  # without progressive_until, not even step 0 is narrowed


def test_resolution_milestones_switch_at_their_step():
    data = RandomCameraIterableDataset(
        config(height=[4, 8, 16], width=[4, 8, 16], batch_size=[4, 2, 1], resolution_milestones=[2, 5])
    )
    sizes = [
        (batch["height"], len(batch["c2w"]), batch["rays_d"].shape[2]) for batch in (data.collate({}) for _ in range(6))
    ]
    assert sizes == [(4, 4, 4)] * 2 + [(8, 2, 8)] * 3 + [(16, 1, 16)]


@pytest.mark.parametrize(
    "values, named",
    [
        ({"height": [4, 8]}, "resolution_milestones"),
        ({"height": [4, 8], "width": [4, 8, 9], "resolution_milestones": [1, 2]}, "height"),
        ({"height": 0}, "height"),
        ({"fovy_range": [70, 40]}, "fovy_range"),
        ({"fovy_range": [0, 180]}, "fovy_range"),
        ({"light_sample_strategy": "sun"}, "light_sample_strategy"),
    ],
)
def test_impossible_values_are_named(values, named):
    with pytest.raises(ConfigError, match=named):
        RandomCameraIterableDataset(config(**values))


def test_batch_k_depends_on_seed_and_k_only():
    torch.manual_seed(5)
    first = RandomCameraIterableDataset(config(batch_size=2))
    batches = [first.collate({}) for _ in range(4)]
    torch.manual_seed(5)
    second = RandomCameraIterableDataset(config(batch_size=2))
    torch.rand(100)
    assert torch.equal(second.batch_at(3)["rays_d"], batches[3]["rays_d"])
    torch.manual_seed(6)
    assert not torch.equal(RandomCameraIterableDataset(config(batch_size=2)).batch_at(3)["c2w"], batches[3]["c2w"])
    assert not torch.equal(batches[2]["c2w"], batches[3]["c2w"])


class Recorder(pl.LightningModule):
    """Remembers the cameras it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["c2w"].clone())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder, steps, checkpoint=None, **trainer):
    pl.seed_everything(3, verbose=False)
    module = Recorder()
    data = find("random-camera-datamodule")(
        {"height": 4, "width": 4, "eval_height": 4, "eval_width": 4, "progressive_until": 4}
    )
    runner = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False, num_sanity_val_steps=0, **trainer,
    )  # fmt: skip
    runner.fit(module, datamodule=data, ckpt_path=checkpoint)
    runner.save_checkpoint(folder / f"{steps}.ckpt")
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{}, {"limit_train_batches": 2}, {"accumulate_grad_batches": 2}, {"val_check_interval": 2}]
)
def test_a_resumed_run_sees_the_cameras_of_an_uninterrupted_one(tmp_path, options):
    whole = train(tmp_path, 6, **options)
    train(tmp_path, 3, **options)
    resumed = train(tmp_path, 6, checkpoint=tmp_path / "3.ckpt", **options)
    per_step = options.get("accumulate_grad_batches", 1)
    assert len(whole) == 6 * per_step and len(resumed) == 3 * per_step
    for old, new in zip(whole[3 * per_step :], resumed):
        assert torch.equal(old, new)
    assert len({tuple(c2w.flatten().tolist()) for c2w in whole}) == 6 * per_step
