"""Meshes on disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreammapping.initialization import shap_e_mesh
from dreammapping.initialization.shap_e import cache, diffusers_backend

from tests.helpers.tiny_shap_e import make_tiny_shap_e


@pytest.fixture
def loads(monkeypatch):
    """How often the weights were loaded."""
    calls = []
    load = diffusers_backend.load_pipeline
    monkeypatch.setattr(diffusers_backend, "load_pipeline", lambda *a, **k: calls.append(a) or load(*a, **k))
    return calls


def kept(settings) -> list[Path]:
    return sorted(Path(settings.cache_dir).iterdir())


def test_a_second_time_loads_nothing_and_gives_the_same_bits(settings, loads):
    first, second = (shap_e_mesh(prompt, settings(), "cpu") for prompt in ("a red mug", "  a red mug "))
    assert len(loads) == 1 and len(kept(settings())) == 1
    assert torch.equal(first.vertices, second.vertices) and torch.equal(first.faces, second.faces) and torch.equal(first.colors, second.colors)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 3}, {"guidance_scale": 2.0}, {"grid_size": 17}, {"half_precision": True}], ids=str
)
def test_every_setting_that_matters_makes_another_entry(settings, loads, change):
    shap_e_mesh("a red mug", settings(), "cpu")
    shap_e_mesh("a red mug", settings(**change), "cpu")
    assert len(loads) == 2 and len(kept(settings())) == 2


def test_so_does_another_prompt_and_another_version_of_the_library_or_the_format(settings, loads, monkeypatch):
    shap_e_mesh("a red mug", settings(), "cpu")
    shap_e_mesh("a red Mug", settings(), "cpu")
    monkeypatch.setattr(diffusers_backend, "version", lambda name: f"{name} of the future")
    shap_e_mesh("a red mug", settings(), "cpu")
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    shap_e_mesh("a red mug", settings(), "cpu")
    assert len(loads) == 4 and len(kept(settings())) == 4


def test_what_does_not_matter_makes_none(settings, loads, model, tmp_path):
    shap_e_mesh("a red mug", settings(), "cpu")
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    shap_e_mesh("a red mug", settings(growing=True, backend="diffusers", half_precision=False, model=str(moved)), "cpu")
    assert len(loads) == 1


def test_other_weights_or_another_config_under_the_same_name_are_noticed(settings, loads, tmp_path):
    folder = make_tiny_shap_e(tmp_path / "model", seed=0)
    mine = replace(settings(), model=str(folder))
    shap_e_mesh("a red mug", mine, "cpu")
    make_tiny_shap_e(folder, seed=1)
    shap_e_mesh("a red mug", mine, "cpu")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "clip_sample_range": 0.5}))
    shap_e_mesh("a red mug", mine, "cpu")
    assert len(loads) == 3 and len(kept(mine)) == 3


def damaged(data: bytes) -> list[bytes]:
    header = int.from_bytes(data[:8], "little") + 8
    return [b"", data[: len(data) // 2], b"x" * len(data), data[:header] + b"\xff" * (len(data) - header)]


@pytest.mark.parametrize("number", range(4))
def test_a_damaged_file_is_made_again(settings, loads, caplog, number):
    caplog.set_level(logging.WARNING, logger="pytorch_lightning")
    first = shap_e_mesh("a red mug", settings(), "cpu")
    (file,) = kept(settings())
    whole = file.read_bytes()
    file.write_bytes(damaged(whole)[number])
    again = shap_e_mesh("a red mug", settings(), "cpu")
    assert torch.equal(first.vertices, again.vertices) and file.read_bytes() == whole and len(loads) == 2
    assert file.name in caplog.text and "made again" in caplog.text


def test_a_file_of_other_inputs_is_not_taken(settings, loads):
    shap_e_mesh("a red mug", settings(), "cpu")
    (first,) = kept(settings())
    other = shap_e_mesh("a blue chair", settings(), "cpu")
    second = next(file for file in kept(settings()) if file != first)
    shutil.copy(first, second)
    assert torch.equal(shap_e_mesh("a blue chair", settings(), "cpu").vertices, other.vertices) and len(loads) == 3


def test_a_crash_while_writing_leaves_no_file(settings, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        shap_e_mesh("a red mug", settings(), "cpu")
    assert kept(settings()) == []


def test_a_folder_that_cannot_be_written_costs_a_warning(settings, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="pytorch_lightning")
    (tmp_path / "file").write_text("in the way")
    mesh = shap_e_mesh("a red mug", settings(cache_dir=str(tmp_path / "file" / "cache")), "cpu")
    assert len(mesh.faces) > 0 and "could not be kept" in caplog.text


def test_the_default_folder_is_the_project_s(settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shap_e_mesh("a red mug", settings(cache_dir=None), "cpu")
    assert [file.suffix for file in (tmp_path / ".threestudio_cache" / "shap_e").iterdir()] == [".safetensors"]


def test_a_mesh_made_before_needs_no_diffusers(settings, monkeypatch):
    first = shap_e_mesh("a red mug", settings(), "cpu")
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it raises
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert torch.equal(first.vertices, shap_e_mesh("a red mug", settings(), "cpu").vertices)


def test_writers_and_readers_of_one_entry_do_not_disturb_each_other(settings, tmp_path):
    """Every reader sees nothing or a whole mesh, while others write. Temporary files have names of their own in each process."""
    mesh = shap_e_mesh("a red mug", settings(grid_size=32), "cpu")

    def work(writes: bool) -> set[int]:
        entry = cache.MeshCache(str(tmp_path / "shared"), {"prompt": "a red mug"})
        if writes:
            for _ in range(20):
                entry.write(mesh)
            return set()
        return {len(found.faces) for found in (entry.read() for _ in range(60)) if found is not None}

    with ThreadPoolExecutor(4) as pool:
        seen = set().union(*pool.map(work, (True, False, True, False)))
    assert seen <= {len(mesh.faces)} and len(list((tmp_path / "shared").iterdir())) == 1
    assert work(False) == {len(mesh.faces)}
