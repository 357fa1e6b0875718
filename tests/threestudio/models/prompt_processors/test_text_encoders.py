"""Prompts of models with several text encoders: equal to what their pipelines make of them, in one tensor each."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.helpers.tiny_pipelines import make_tiny
from threestudio import find
from threestudio.errors import PretrainedError
from threestudio.models.prompt_processors.text_encoders import encode_prompts, pack
from threestudio.utils.pretrained import resolve_pretrained


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "sdxl": make_tiny(root / "sdxl", "sdxl", pooled=30),
        "sdxl_words": make_tiny(root / "sdxl_words", "sdxl", force_zeros=False),
        "sd3": make_tiny(root / "sd3", "sd3"),
    }


def encode(folder, *prompts):
    return list(encode_prompts(resolve_pretrained(str(folder)), prompts, torch.device("cpu")))


def taken_apart(packed, width, pooled):
    """Tokens and pooled vector by the documented layout, written here once more."""
    rows = -(-pooled // width)
    vector = packed[-rows:].reshape(-1)
    assert packed.shape[1] == width and not vector[pooled:].any()
    return packed[:-rows], vector[:pooled]


@pytest.mark.parametrize(("kind", "width", "pooled"), [("sdxl", 24, 30), ("sdxl_words", 24, 12), ("sd3", 32, 20)])
@torch.no_grad()
def test_prompts_equal_the_pipelines(folders, kind, width, pooled):
    pipe = DiffusionPipeline.from_pretrained(folders[kind])
    more = {"prompt_3": None} if kind == "sd3" else {}
    expected, empty, expected_pooled, empty_pooled = pipe.encode_prompt("a red mug", prompt_2=None, **more)
    red, nothing = (taken_apart(packed, width, pooled) for packed in encode(folders[kind], "a red mug", ""))
    for got, theirs in zip((*red, *nothing), (expected, expected_pooled, empty, empty_pooled)):
        torch.testing.assert_close(got, theirs[0], atol=1e-6, rtol=1e-5)
    assert bool(nothing[0].any()) == (kind != "sdxl")
    assert not torch.equal(red[0], encode(folders[kind], "a blue mug")[0][: len(red[0])])


@pytest.mark.parametrize(("pooled", "rows"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_packing(pooled, rows):
    tokens, vector = torch.randn(3, 4), torch.arange(1.0, pooled + 1)
    packed = pack(tokens, vector)
    assert packed.shape == (3 + rows, 4) and torch.equal(packed[:3], tokens)
    assert torch.equal(packed[3:].flatten(), torch.cat([vector, torch.zeros(4 * rows - pooled)]))


def test_without_t5_its_tokens_are_zeros_and_the_user_is_told(folders, tmp_path, caplog):
    folder = shutil.copytree(folders["sd3"], tmp_path / "light")
    shutil.rmtree(folder / "text_encoder_3")
    with caplog.at_level(logging.WARNING):
        (light,) = encode(folder, "a red mug")
    assert "no text_encoder_3 (T5)" in caplog.text
    (full,) = encode(folders["sd3"], "a red mug")
    clip, t5 = slice(0, 24), slice(24, -1)
    assert torch.equal(light[clip], full[clip]) and torch.equal(light[-1], full[-1])
    assert light.shape == full.shape and not light[t5].any() and full[t5].any()


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_the_processor_caches_views_and_follows_the_model(folders, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(folders[kind], tmp_path / "model")

    def processor():
        config = {"pretrained_model_name_or_path": str(folder), "prompt": "a red mug", "spawn": False}
        return find("stable-diffusion-prompt-processor")(config)

    first = processor()
    utils = first()
    for i, prompt in enumerate(utils.prompts_vd):
        assert torch.equal(utils.text_embeddings_vd[i], encode(folder, prompt)[0])
    assert torch.equal(utils.empty_text_embeddings[0], encode(folder, "")[0])
    assert processor().cache_dir == first.cache_dir
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    assert processor().cache_dir != first.cache_dir


def test_problems_are_told(folders, tmp_path):
    folder = shutil.copytree(folders["sd3"], tmp_path / "odd")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(PretrainedError, match="text_encoder_2"):
        encode(folder, "a red mug")
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(PretrainedError, match="is a FluxPipeline; prompts are encoded for StableDiffusionPipeline, "):
        encode(folder, "a red mug")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(PretrainedError, match="names no _class_name"):
        encode(folder, "a red mug")
