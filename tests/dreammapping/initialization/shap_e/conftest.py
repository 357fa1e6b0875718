from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dreammapping.initialization import ShapESettings

from tests.helpers.tiny_shap_e import make_tiny_shap_e


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Shap-E."""
    return make_tiny_shap_e(tmp_path_factory.mktemp("models") / "shap-e")


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> Callable[..., ShapESettings]:
    """Settings for quick meshes, which are kept in the test's own folder."""

    def make(**changes: object) -> ShapESettings:
        quick = {"model": str(model), "steps": 2, "grid_size": 16, "seed": 0, "cache_dir": str(tmp_path / "cache")}
        return ShapESettings(**{**quick, **changes})

    return make
