"""Every registered loss takes steps on Gaussians, radiance fields and pictures by its configs, with a small real pipeline.

A new loss is picked up by its name; it needs `<name>-gs.yaml` and `<name>-2d.yaml`. Whole runs of the six main pairs are in test_pairs.py.
"""

from __future__ import annotations

from pathlib import Path

import dreammapping  # noqa: F401  registers its classes
import pytest
import threestudio
import torch
from dreammapping.distillation import LOSSES
from threestudio.utils.config import load_config

from tests.helpers import small_run
from tests.helpers.corrector import corrector_for
from tests.helpers.tiny_teacher import make_tiny_teacher

CONFIGS = small_run.CONFIG.parent
KINDS = ("gs", "nerf", "2d")
SIZES = ["data.height=32", "data.width=32", "data.eval_height=32", "data.eval_width=32", "data.batch_size=2"]
FIELD = ["data.batch_size=1", "system.renderer.num_samples_per_ray=16", "system.geometry.pos_encoding_config.log2_hashmap_size=10"]
PAIRS = "{type: consistency}"  # consistent3d's rule for its two steps, which vdm-nerf.yaml has not
STEPS = 2


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def needed(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides without which a loss cannot be."""
    return {"lmc-sds": corrector_for(teacher, tmp_path_factory.mktemp("corrector"))}


def overrides(kind: str, teacher: Path) -> list[str]:
    common = [
        "use_timestamp=false", "tag=small", "system.prompt_processor.prompt=a red striped mug", "trainer.max_steps=20",
        f"system.prompt_processor.pretrained_model_name_or_path={teacher}", "system.prompt_processor.spawn=false",
        "system.prompt_processor.use_cache=false",
    ]  # fmt: skip
    return common + {"gs": [*SIZES, "system.geometry.init.type=sphere", "system.geometry.init.num_points=50"], "nerf": [*SIZES, *FIELD], "2d": []}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES.names())
def test_it_takes_steps_by_its_config(name: str, kind: str, teacher: Path, needed: dict[str, list[str]]):
    file = CONFIGS / ("vdm-nerf.yaml" if kind == "nerf" else f"{name}-{kind}.yaml")
    own = [f"system.guidance.loss.type={name}"] if kind == "nerf" else []
    own += needed.get(name, [])
    own += [f"system.guidance.timesteps={PAIRS}"] if name == "consistent3d" and kind == "nerf" else []
    config = load_config(file, cli_args=[*overrides(kind, teacher), *own])
    torch.manual_seed(0)
    system = threestudio.find(config.system_type)(config.system).train()
    data = threestudio.find(config.data_type)(config.data)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    optimizer = system.configure_optimizers()["optimizer"]
    before = [p.detach().clone() for p in system.geometry.parameters()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch = next(batches)
        system.preprocess_data(batch, "train")
        value = system.total_loss(system(batch), batch)
        value.backward()
        assert torch.isfinite(value)
        optimizer.step()
    after = list(system.geometry.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after))
    assert system.guidance.teacher.calls.forwards > 0
