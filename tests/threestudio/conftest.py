"""Where tiny runs of the command line take place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.toy_run import YAML
from threestudio.extensions import load_extensions


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with toy.yaml, where the run takes place."""
    load_extensions(Path(__file__).parent / "toy_custom")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "toy.yaml").write_text(YAML)
    return tmp_path
