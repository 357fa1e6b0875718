"""Finding and reading a Shap-E's files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.initialization import shap_e_mesh
from dreammapping.initialization.shap_e.diffusers_backend import load_pipeline
from dreammapping.initialization.shap_e.weights import find_weights, used_files

from tests.helpers.tiny_teacher import make_tiny_teacher

COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def cached(hub: Path, name: str, folder: Path) -> Path:
    """Put a model into the cache as the hub's client does."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def openai_layout(folder: Path, target: Path) -> Path:
    """As openai/shap-e is: text and diffusion as .safetensors in half precision, the renderer as .bin."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    for part, name in (("prior", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = target / part / f"{name}.safetensors"
        save_file({k: v.half() for k, v in load_file(file).items()}, target / part / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        file.unlink()
        (target / part / f"{name}.bin").write_bytes(b"not to be read")
    file = target / "shap_e_renderer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    return target


def test_a_hub_name_is_found_in_the_cache_offline(settings, model, hub):
    snapshot = cached(hub, "someone/shapes", model)
    assert find_weights("someone/shapes").folder == snapshot
    named, by_folder = (shap_e_mesh("a red mug", settings(model=name), "cpu") for name in ("someone/shapes", str(model)))
    assert torch.equal(named.vertices, by_folder.vertices)
    assert find_weights("someone/shapes").fingerprint == find_weights(str(model)).fingerprint


def test_the_layout_of_openai_s_repository_is_read(settings, model, tmp_path, hub):
    folder = openai_layout(model, tmp_path / "openai")
    names = {file.relative_to(folder).as_posix() for file in used_files(folder)}
    assert {"prior/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"} <= names
    assert "shap_e_renderer/diffusion_pytorch_model.bin" in names and not any(n.startswith(("prior/", "text_")) and n.endswith(".bin") for n in names)
    pipeline, plain = (load_pipeline(where, "tiny", torch.device("cpu"), half=False) for where in (folder, model))
    assert pipeline.prior.dtype == pipeline.text_encoder.dtype == torch.float32
    for part in ("prior", "text_encoder", "shap_e_renderer"):
        theirs = getattr(plain, part).state_dict()
        for name, value in getattr(pipeline, part).state_dict().items():
            tolerance = 0.0 if part == "shap_e_renderer" else 1e-3
            torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance)
    cached(hub, "openai/shap-e", folder)
    assert len(shap_e_mesh("a red mug", settings(model="openai/shap-e"), "cpu").faces) > 0


def test_a_bin_that_holds_more_than_tensors_is_not_executed(settings, model, tmp_path):
    folder = openai_layout(model, tmp_path / "openai")
    torch.save({"weight": Path("an object")}, folder / "shap_e_renderer" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot load the shap_e_renderer"):
        shap_e_mesh("a red mug", settings(model=str(folder)), "cpu")


def test_a_model_that_is_nowhere_says_what_was_tried_and_how_to_get_it(settings, hub):
    with pytest.raises(ConfigError) as caught:
        shap_e_mesh("a red mug", settings(model="openai/shap-e"), "cpu")
    message = str(caught.value)
    for part in ("'openai/shap-e' was not found", "folder ", "Hugging Face cache: not there", "HF_HUB_OFFLINE",
                 'hf download openai/shap-e --exclude "[prt]*.bin"', "system.geometry.init.type=sphere"):  # fmt: skip
        assert part in message, part


def test_without_network_the_client_s_problem_is_told(settings, hub, monkeypatch):
    import huggingface_hub

    def download(name, local_files_only=False, **_):
        raise OSError("not cached") if local_files_only else ConnectionError("no route to host")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match="download: ConnectionError: no route to host"):
        shap_e_mesh("a red mug", settings(model="someone/shapes"), "cpu")


def test_only_what_is_read_is_fetched(model, hub, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    fetched = []

    def download(name, local_files_only=False, allow_patterns=None):
        if local_files_only:
            raise OSError("not cached")
        files = "model_index.json README.md prior/config.json prior/diffusion_pytorch_model.bin prior/diffusion_pytorch_model.fp16.safetensors"
        files += " renderer/diffusion_pytorch_model.fp16.safetensors shap_e_renderer/diffusion_pytorch_model.bin tokenizer/merges.txt"
        fetched.extend(filter_repo_objects(files.split(), allow_patterns=allow_patterns))
        return str(model)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_weights("openai/shap-e").folder == model
    assert set(fetched) == {
        "model_index.json", "prior/config.json", "prior/diffusion_pytorch_model.fp16.safetensors",
        "shap_e_renderer/diffusion_pytorch_model.bin", "tokenizer/merges.txt",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gone", "./gone", "a/b/c", "~/gone"])
def test_what_is_neither_folder_nor_repository_gets_openai_s_command(settings, hub, name):
    with pytest.raises(ConfigError, match="does not exist\nGet it with: hf download openai/shap-e"):
        shap_e_mesh("a red mug", settings(model=name), "cpu")


def test_another_kind_of_checkpoint_is_named(settings, model, tmp_path, hub):
    teacher = make_tiny_teacher(tmp_path / "teacher")
    with pytest.raises(ConfigError, match="is a StableDiffusionPipeline.*must be a ShapEPipeline"):
        shap_e_mesh("a red mug", settings(model=str(teacher)), "cpu")
    cached(hub, "someone/teacher", teacher)
    with pytest.raises(ConfigError, match="is a StableDiffusionPipeline"):
        shap_e_mesh("a red mug", settings(model="someone/teacher"), "cpu")
    images = shutil.copytree(model, tmp_path / "images")
    index = json.loads((images / "model_index.json").read_text())
    (images / "model_index.json").write_text(json.dumps({**index, "_class_name": "ShapEImg2ImgPipeline"}))
    with pytest.raises(ConfigError, match="ShapEImg2ImgPipeline: it makes objects of pictures"):
        shap_e_mesh("a red mug", settings(model=str(images)), "cpu")


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_folder_without_a_readable_index_is_no_shap_e(settings, tmp_path, text):
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ConfigError, match="model_index.json is missing or damaged"):
        shap_e_mesh("a red mug", settings(model=str(tmp_path)), "cpu")


@pytest.mark.parametrize(
    ("file", "missing"),
    [
        ("prior/diffusion_pytorch_model.safetensors", "weights in prior/"),
        ("shap_e_renderer/config.json", "shap_e_renderer/config.json"),
        ("tokenizer", "tokenizer/"),
    ],
)
def test_an_incomplete_folder_says_what_it_lacks(settings, model, tmp_path, file, missing):
    folder = shutil.copytree(model, tmp_path / "model")
    shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()
    with pytest.raises(ConfigError, match=f"has no {missing}. Get it again with: hf download openai/shap-e"):
        shap_e_mesh("a red mug", replace(settings(), model=str(folder)), "cpu")


@pytest.mark.parametrize("part", ["prior/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "scheduler/scheduler_config.json"])
def test_a_damaged_part_is_named(settings, model, tmp_path, part):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / part).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=f"cannot load the {part.split('/')[0]} of the Shap-E model"):
        shap_e_mesh("a red mug", settings(model=str(folder)), "cpu")
