"""dreamfusion-system and prolificdreamer-system on a miniature field: terms, weights, order of building, resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import threestudio
from threestudio.errors import ConfigError
from threestudio.systems import regularizers
from threestudio.utils.base import BaseModule, BaseObject

SIZE = 4


@threestudio.register("text3d-test-geometry")
class Geometry(BaseModule):
    def configure(self):
        self.color = nn.Parameter(torch.linspace(0.1, 0.9, SIZE * SIZE * 3).view(1, SIZE, SIZE, 3))


@threestudio.register("text3d-test-part")
class Part(BaseModule):
    def configure(self, geometry=None, material=None, background=None):
        pass


@threestudio.register("text3d-test-renderer")
class FieldRenderer(BaseModule):
    """What a volume renderer returns, from few numbers."""

    @dataclass
    class Config(BaseModule.Config):
        normals: bool = False

    def configure(self, geometry, material, background):
        self.sub = {"geometry": geometry}

    def forward(self, c2w, **kwargs):
        rgb = self.sub["geometry"].color.sigmoid().expand(len(c2w), -1, -1, -1)
        out = {"comp_rgb": rgb, "opacity": rgb[..., :1], "z_variance": rgb[..., 1:2]}
        if self.cfg.normals:
            n = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
            out |= {"normal": n, "t_dirs": n[:1].expand(2, 3), "weights": torch.full((2, 1), 0.5), "comp_normal": rgb}
        return out


@threestudio.register("text3d-test-prompts")
class Prompts(BaseObject):
    def configure(self):
        self.use_perp_neg = False
        g = torch.Generator().manual_seed(0)
        self.text_embeddings = torch.randn(1, 24, 16, generator=g)

    def __call__(self):
        return self

    def get_text_embeddings(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
        return torch.cat([self.text_embeddings.expand(len(elevation), -1, -1)] * 2)


@threestudio.register("text3d-test-guidance")
class NoisyGuidance(BaseModule):
    """Pulls towards a target with noise of its own generator, whose state is the only thing to resume."""

    def configure(self):
        self.generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31)

    def get_extra_state(self):
        return self.generator.get_state()

    def set_extra_state(self, state):
        self.generator.set_state(state)

    def forward(self, rgb, prompt_utils, elevation, azimuth, camera_distances, rgb_as_latents=False, **kwargs):
        assert prompt_utils.text_embeddings is not None and rgb_as_latents is False
        target = torch.rand(rgb.shape, generator=self.generator)
        return {"loss_sds": (rgb - target).square().sum(), "grad_norm": torch.ones(()), "many": torch.ones(2)}


@threestudio.register("text3d-test-trainable-guidance")
class TrainableGuidance(NoisyGuidance):
    """Has a parameter that it leaves to the system's optimizer."""

    def configure(self):
        super().configure()
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def trained_by_system(self):
        return [self.scale]

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        return {**out, "loss_scale": self.scale.square()}


class Cameras(pl.LightningDataModule):
    def _loader(self, count):
        item = {
            "c2w": torch.eye(4),
            "elevation": torch.tensor(10.0),
            "azimuth": torch.tensor(20.0),
            "camera_distances": torch.tensor(2.0),
        }
        return torch.utils.data.DataLoader([{**item, "index": i} for i in range(count)], batch_size=1)

    def train_dataloader(self):
        return self._loader(100)

    def val_dataloader(self):
        return self._loader(1)

    def test_dataloader(self):
        return self._loader(2)


LOSS = {"lambda_sds": 2.0, "lambda_orient": 0.0, "lambda_sparsity": 0.5, "lambda_opaque": [0, 0.0, 1.0, 10]}


def build(name="dreamfusion-system", loss=LOSS, resumed=False, normals=False, **settings):
    config = {
        "geometry_type": "text3d-test-geometry",
        "material_type": "text3d-test-part",
        "background_type": "text3d-test-part",
        "renderer_type": "text3d-test-renderer",
        "renderer": {"normals": normals},
        "guidance_type": "text3d-test-guidance",
        "prompt_processor_type": "text3d-test-prompts",
        "loss": loss,
        "optimizer": {"name": "Adam", "args": {"lr": 0.05}, "params": {"geometry": {}}},
        **settings,
    }
    return threestudio.find(name)(OmegaConf.create(config), resumed=resumed)


def fit(system, folder, steps, checkpoint=None):
    system.set_save_dir(str(folder))
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(system, datamodule=Cameras(), ckpt_path=checkpoint, weights_only=True)
    return trainer


def outputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    opacity = torch.rand(2, 3, 3, 1, generator=g, dtype=torch.float64)
    opacity[0, 0] = 0
    return {
        "opacity": opacity.requires_grad_(),
        "z_variance": torch.rand(2, 3, 3, 1, generator=g, dtype=torch.float64),
        "normal": torch.randn(5, 3, generator=g, dtype=torch.float64),
        "t_dirs": torch.randn(5, 3, generator=g, dtype=torch.float64),
        "weights": torch.rand(5, 1, generator=g, dtype=torch.float64).requires_grad_(),
        "sdf_grad": torch.randn(5, 3, generator=g, dtype=torch.float64),
    }


def test_regularizers_equal_their_formulas_by_hand():
    out = outputs()
    alpha = out["opacity"].flatten().tolist()
    kept = [min(max(x, 1e-3), 1 - 1e-3) for x in alpha]
    away = [max(sum(a * b for a, b in zip(n, d)), 0) for n, d in zip(out["normal"].tolist(), out["t_dirs"].tolist())]
    solid = [v for v, x in zip(out["z_variance"].flatten().tolist(), alpha) if x > 0.5]
    expected = {
        "sparsity": sum(math.sqrt(x * x + 0.01) for x in alpha) / len(alpha),
        "opaque": -sum(x * math.log(x) + (1 - x) * math.log(1 - x) for x in kept) / len(kept),
        "orient": sum(w * a * a for w, a in zip(out["weights"].flatten().tolist(), away)) / sum(x > 0 for x in alpha),
        "z_variance": sum(solid) / len(solid),
        "eikonal": sum((math.hypot(*g) - 1) ** 2 for g in out["sdf_grad"].tolist()) / 5,
    }
    for name, value in expected.items():
        assert getattr(regularizers, name)(out).item() == pytest.approx(value), name
    regularizers.sparsity(out).backward()
    torch.testing.assert_close(
        out["opacity"].grad, (out["opacity"] / (out["opacity"] ** 2 + 0.01).sqrt()).detach() / out["opacity"].numel()
    )
    assert not regularizers.orient(out).requires_grad, "the weights are constants in this term"


def test_nothing_solid_has_no_depth_variance():
    out = outputs()
    out["opacity"] = torch.zeros_like(out["opacity"])
    assert regularizers.z_variance(out).item() == 0
    assert regularizers.orient(out).isfinite()


@pytest.mark.parametrize("name", ["dreamfusion-system", "prolificdreamer-system"])
def test_one_step_minimizes_the_weighted_terms(name, monkeypatch):
    loss = {**LOSS, "lambda_orient": 3.0, "lambda_z_variance": 5.0}
    system = build(name, loss, normals=True)
    if name == "dreamfusion-system":
        assert not hasattr(system, "guidance"), "testing must not need it"
        system.build_guidance()
    logged = {}
    monkeypatch.setattr(system, "log", lambda key, value, **_: logged.update({key: float(value)}))
    monkeypatch.setattr(type(system), "true_global_step", 5)
    total = system.training_step(next(iter(Cameras().train_dataloader())), 0)["loss"]
    terms = {"sds": 2.0, "orient": 3.0, "sparsity": 0.5, "opaque": 0.5, "z_variance": 5.0}
    assert total.item() == pytest.approx(sum(logged[f"train/loss_{k}"] * w for k, w in terms.items()), rel=1e-5)
    assert {k: logged[f"train_params/lambda_{k}"] for k in terms} == terms
    assert logged["train/grad_norm"] == 1 and "train/many" not in logged
    total.backward()
    assert system.geometry.color.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("dreamfusion-system", {"lambda_sparsity": 1.0}, "system.loss.lambda_sds is missing: text3d-test-guidance"),
        ("dreamfusion-system", {"lambda_sds": 1.0, "lambda_sparsity": 1.0}, "system.loss.lambda_opaque is missing"),
        ("dreamfusion-system", {**LOSS, "lambda_orient": 1.0}, "lambda_orient needs normals"),
    ],
)
def test_missing_weights_and_normals_are_told(name, loss, message, monkeypatch):
    system = build(name, loss)
    if name == "dreamfusion-system":
        system.build_guidance()
    monkeypatch.setattr(system, "log", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=message):
        system.training_step(next(iter(Cameras().train_dataloader())), 0)


def test_other_stages_and_samples_are_told():
    with pytest.raises(ConfigError, match="only the stage coarse is covered"):
        build("prolificdreamer-system", stage="texture")
    with pytest.raises(ConfigError, match="must be one of coarse, geometry, texture"):
        build("prolificdreamer-system", stage="fine")
    with pytest.raises(ConfigError, match="needs a guidance with samples"):
        build("prolificdreamer-system", visualize_samples=True)


def test_pictures_and_turntable(tmp_path):
    system = build(normals=True)
    system.set_save_dir(str(tmp_path))
    system.set_resume_status(0, 7)
    batches = list(Cameras().test_dataloader())
    with torch.no_grad():
        system.validation_step(batches[0], 0)
        for i, batch in enumerate(batches):
            system.test_step(batch, i)
    system.on_test_epoch_end()
    for path in ("it7-0.png", "it7-test/0.png", "it7-test/1.png"):
        with Image.open(tmp_path / path) as image:
            assert image.size == (3 * SIZE, SIZE)  # color, normal, opacity
    assert (tmp_path / "it7-test.mp4").stat().st_size > 0


@pytest.mark.parametrize("name", ["dreamfusion-system", "prolificdreamer-system"])
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    loss = {**LOSS, "lambda_z_variance": 0.0}
    whole, first, second = (tmp_path / n for n in ("whole", "first", "second"))
    pl.seed_everything(3, verbose=False)
    uninterrupted = build(name, loss)
    fit(uninterrupted, whole, 6)
    pl.seed_everything(3, verbose=False)
    fit(build(name, loss), first, 3).save_checkpoint(tmp_path / "half.ckpt")
    pl.seed_everything(99, verbose=False)
    resumed = build(name, loss, resumed=True)
    fit(resumed, second, 6, str(tmp_path / "half.ckpt"))
    assert torch.equal(uninterrupted.geometry.color, resumed.geometry.color)
    assert torch.equal(uninterrupted.guidance.generator.get_state(), resumed.guidance.generator.get_state())


def test_an_untrained_dreamfusion_takes_weights_of_a_run_and_leaves_its_guidance(tmp_path):
    fit(build(), tmp_path, 1).save_checkpoint(tmp_path / "run.ckpt")
    system = build(weights=str(tmp_path / "run.ckpt"))
    assert not hasattr(system, "guidance") and system._guidance_state
    trained = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]["geometry.color"]
    assert torch.equal(system.geometry.color, trained)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(trained, build().geometry.color)


@pytest.mark.parametrize("name", ["dreamfusion-system", "prolificdreamer-system"])
def test_a_guidance_without_an_entry_in_the_optimizer_is_an_error(tmp_path, name):
    guidance = {"guidance_type": "text3d-test-trainable-guidance", "loss": {**LOSS, "lambda_scale": 1.0}}
    with pytest.raises(ConfigError, match="params has no entry for guidance: 1 parameters of TrainableGuidance"):
        fit(build(name, **guidance), tmp_path, steps=1)


def test_a_guidance_with_an_entry_is_trained(tmp_path):
    optimizer = {"name": "Adam", "args": {"lr": 0.05}, "params": {"geometry": {}, "guidance": {"lr": 0.1}}}
    system = build(
        "prolificdreamer-system", guidance_type="text3d-test-trainable-guidance",
        loss={**LOSS, "lambda_scale": 1.0}, optimizer=optimizer,
    )  # fmt: skip
    fit(system, tmp_path, steps=1)
    assert system.guidance.scale.item() == pytest.approx(0.9, abs=1e-4)
