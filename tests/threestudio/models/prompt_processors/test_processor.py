"""From a prompt to embeddings, end to end, with a miniature CLIP folder made here."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch

from threestudio import find
from threestudio.errors import ConfigError, PretrainedError
from threestudio.models.prompt_processors import process
from threestudio.models.prompt_processors.base import PromptProcessor, find_in_library, hash_prompt
from threestudio.models.prompt_processors.debiasing import debias

sys.path.append(str(Path(__file__).resolve().parents[3]))
from helpers.tiny_teacher import make_tiny_teacher  # noqa: E402

LENGTH = 16


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"), text_length=LENGTH, text_width=8)


@pytest.fixture
def teacher(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(original, tmp_path / "teacher"))


def make(teacher, **config):
    return find("stable-diffusion-prompt-processor")(
        {"pretrained_model_name_or_path": str(teacher), "prompt": "a red mug", "spawn": False, **config}
    )


def encode(teacher, text):
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(teacher), subfolder="tokenizer")
    model = CLIPTextModel.from_pretrained(str(teacher), subfolder="text_encoder").eval()
    tokens = tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(tokens.input_ids).last_hidden_state


def test_embeddings_equal_the_text_models(teacher):
    utils = make(teacher, negative_prompt="ugly", prompt_back="a blue cone")()
    views = ["a red mug, side view", "a red mug, front view", "a blue cone", "a red mug, overhead view"]
    assert utils.prompts_vd == views and utils.prompt == "a red mug"
    assert torch.allclose(utils.text_embeddings, encode(teacher, "a red mug"), atol=1e-6)
    assert torch.allclose(utils.uncond_text_embeddings, encode(teacher, "ugly"), atol=1e-6)
    assert torch.allclose(utils.empty_text_embeddings, encode(teacher, ""), atol=1e-6)
    assert torch.allclose(utils.text_embeddings_vd, torch.cat([encode(teacher, view) for view in views]), atol=1e-6)
    assert torch.allclose(utils.uncond_text_embeddings_vd, encode(teacher, "ugly").expand(4, -1, -1), atol=1e-6)
    assert utils.text_embeddings.shape == (1, LENGTH, 8) and utils.text_embeddings.dtype == torch.float32
    assert utils.get_text_embeddings(torch.zeros(2), torch.zeros(2), torch.ones(2)).shape == (4, LENGTH, 8)


def test_cache_is_used_repaired_and_bound_to_the_weights(teacher, monkeypatch):
    processor = make(teacher)
    calls = []
    kind = type(processor)
    encode_now = kind.spawn_func
    monkeypatch.setattr(
        kind,
        "spawn_func",
        staticmethod(lambda name, prompts, folder: (calls.append(prompts), encode_now(name, prompts, folder))),
    )
    before = {file: file.read_bytes() for file in processor.cache_dir.iterdir()}
    assert len(before) == 6  # the prompt, "" (also the negative prompt), four views; no temporary files
    make(teacher)
    assert calls == []
    damaged = processor._cache_file("a red mug")
    damaged.write_bytes(damaged.read_bytes()[:40])
    again = make(teacher)
    assert calls == [["a red mug"]] and torch.equal(again.text_embeddings, processor.text_embeddings)
    make(teacher, use_cache=False)
    assert len(calls[1]) == 6 and {file: file.read_bytes() for file in processor.cache_dir.iterdir()} == before
    shutil.rmtree(teacher)
    make_tiny_teacher(teacher, text_length=LENGTH, text_width=8, seed=1)  # another model in the same place
    other = make(teacher)
    assert len(calls) == 3 and not torch.equal(other.text_embeddings, processor.text_embeddings)
    assert torch.allclose(other.text_embeddings, encode(teacher, "a red mug"), atol=1e-6)


def test_a_child_process_gives_the_same_bytes(teacher):
    """Slow (a second interpreter starts), hence once."""
    inline = make(teacher)
    first = {file.name: file.read_bytes() for file in inline.cache_dir.iterdir()}
    shutil.rmtree(".threestudio_cache")
    spawned = make(teacher, spawn=True)
    assert {file.name: file.read_bytes() for file in spawned.cache_dir.iterdir()} == first


def _fails(message):
    raise PretrainedError(message)


def test_a_failing_child_hands_over_its_message(monkeypatch):
    sent = []
    connection = type("C", (), {"send": lambda self, value: sent.append(value)})()
    process._run_and_report(connection, _fails, ("the file x is damaged",))
    process._run_and_report(connection, int, ("x",))
    process._run_and_report(connection, int, ("1",))
    assert sent[0] == "the file x is damaged" and "ValueError" in sent[1] and sent[2] is None


def test_an_encoder_of_an_extension_runs_here(caplog):
    called = []

    def encode_there(*arguments):
        called.append(arguments)

    encode_there.__module__ = "my-extension.prompts"
    with caplog.at_level(logging.WARNING, logger="pytorch_lightning"):
        process.run_encoder(encode_there, (1, 2), in_child=True)
    assert called == [(1, 2)] and "my-extension" in caplog.text


def test_long_prompts_are_cut_and_the_loss_is_shown(teacher, caplog):
    long = "a red mug on a wooden table with a green cone on white chair"  # 14 words and two marks are 16 tokens
    with caplog.at_level(logging.WARNING, logger="pytorch_lightning"):
        processor = make(teacher, prompt=long)
    assert f"takes {LENGTH} tokens" in caplog.text and "loses ', front view'" in caplog.text
    assert f"{long!r} loses" not in caplog.text  # the prompt itself just fits
    assert torch.allclose(processor.text_embeddings_vd[0], processor.text_embeddings[0], atol=1e-6)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="pytorch_lightning"):
        make(teacher)
    assert caplog.text == ""


def test_words_outside_a_models_vocabulary_are_named_once(teacher, caplog):
    words = {"words": ["a", "of"], "families": ["mug", "tea pot"], "colors": ["red"], "patterns": ["striped"]}
    (teacher / "vocabulary.json").write_text(json.dumps(words))
    with caplog.at_level(logging.WARNING, logger="pytorch_lightning"):
        make(teacher, prompt="A red pot of a Dragon, dragon")
    assert caplog.text.count("'dragon'") == 1 and "'pot'" not in caplog.text and "'red'" not in caplog.text
    assert "families: mug, tea pot; colors: red; patterns: striped" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="pytorch_lightning"):
        make(teacher, prompt="a red mug")
    assert caplog.text == ""
    (teacher / "vocabulary.json").write_text("{")
    with pytest.raises(PretrainedError, match="vocabulary.json"):
        make(teacher)


def test_damage_is_named_by_file(teacher):
    file = teacher / "text_encoder" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-10])
    with pytest.raises(PretrainedError, match="text_encoder.model.safetensors"):
        make(teacher)
    file.unlink()
    with pytest.raises(PretrainedError, match="text_encoder"):
        make(teacher)
    shutil.rmtree(teacher / "tokenizer")
    with pytest.raises(PretrainedError, match="tokenizer"):
        make(teacher)


def test_missing_tensors_are_not_filled_with_noise(teacher):
    from safetensors.torch import load_file, save_file

    file = teacher / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    gone = next(key for key in tensors if "fc1.weight" in key)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(PretrainedError, match="fc1.weight"):
        make(teacher)


def test_half_precision_weights_are_read_as_float32(teacher):
    from transformers import CLIPTextModel

    CLIPTextModel.from_pretrained(str(teacher), subfolder="text_encoder").half().save_pretrained(
        teacher / "text_encoder"
    )
    assert make(teacher).text_embeddings.dtype == torch.float32


def test_a_model_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PretrainedError, match="neither a folder"):
        make("./nowhere")


class Echo(PromptProcessor):
    """Writes the length of each prompt, as an extension's processor would: files named by model and prompt."""

    @staticmethod
    def spawn_func(pretrained_model_name_or_path, prompts, cache_dir):
        for prompt in prompts:
            torch.save(
                torch.full((2, 1), float(len(prompt))),
                f"{cache_dir}/{hash_prompt(pretrained_model_name_or_path, prompt)}.pt",
            )


def test_a_third_party_processor_needs_only_spawn_func(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    utils = Echo({"prompt": "abc", "spawn": False, "prompt_side": "xy", "view_dependent_prompt_front": True})()
    assert utils.text_embeddings.flatten().tolist() == [3, 3] and utils.text_embeddings_vd[0].flatten().tolist() == [
        2,
        2,
    ]
    assert (
        utils.prompts_vd[2] == "backside view of abc" and (tmp_path / ".threestudio_cache" / "text_embeddings").is_dir()
    )


def test_library_prompts(tmp_path, monkeypatch):
    library = {"tabletop": ["a red mug"], "dreamfusion": ["A fox reading", "a fox running", "a cup"]}
    assert (
        find_in_library(["fox", "read"], library) == "A fox reading"
        and find_in_library(["red"], {"dreamfusion": [], **library}) == "a red mug"
    )
    with pytest.raises(ValueError, match="2 prompts"):
        find_in_library(["fox"], library)
    with pytest.raises(ConfigError, match="no prompt"):
        find_in_library(["whale"], library)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "prompt_library.json").write_text(json.dumps(library))
    assert Echo({"prompt": "lib:FOX_runn", "spawn": False})().prompt == "a fox running"


def test_the_shipped_library_is_sound():
    library = json.loads((Path(__file__).resolve().parents[4] / "load" / "prompt_library.json").read_text("utf-8"))
    assert len(library["dreamfusion"]) >= 50 and len(library["tabletop"]) >= 40
    everything = [prompt for prompts in library.values() for prompt in prompts]
    assert len(set(everything)) == len(everything) and all(
        prompt == prompt.strip() and len(prompt.split()) < 40 for prompt in everything
    )


def test_debiasing_drops_words_that_speak_against_a_view():
    def probabilities(text):  # "smiling" halves the back view, for the front's good; "red" changes it by 4 %
        values = torch.tensor([0.25, 0.25, 0.25, 0.25])
        if "smiling" in text:
            values = values + torch.tensor([0.0, 0.125, -0.125, 0.0])
        return values * (torch.tensor([1, 1, 0.96, 1]) if "red" in text else 1)

    assert debias("a smiling red dog", probabilities, 4) == [
        "a smiling red dog",
        "a smiling red dog",
        "a red dog",
        "a smiling red dog",
    ]
    assert debias("a smiling red dog", probabilities, 4, word_ids=[0, 3])[2] == "a smiling red dog"
    with pytest.raises(ConfigError, match="numbered from 0 to 3"):
        debias("a smiling red dog", probabilities, 4, word_ids=[4])


def test_debiasing_conflicts_and_missing_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="prompt_side"):
        Echo({"use_prompt_debiasing": True, "prompt_side": "x"})
    with pytest.raises(PretrainedError, match="use_prompt_debiasing"):
        Echo(
            {"use_prompt_debiasing": True, "pretrained_model_name_or_path_prompt_debiasing": str(tmp_path / "no-bert")}
        )


def test_debiasing_end_to_end_with_a_tiny_bert(tmp_path, monkeypatch):
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    monkeypatch.chdir(tmp_path)
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] this image is depicting a view of side front back overhead red dog".split()
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    folder = tmp_path / "bert"
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    utils = Echo(
        {
            "prompt": "a red dog",
            "spawn": False,
            "use_prompt_debiasing": True,
            "pretrained_model_name_or_path_prompt_debiasing": str(folder),
        }
    )()
    suffixes = [", side view", ", front view", ", back view", ", overhead view"]
    kept = [prompt.removesuffix(suffix).split() for prompt, suffix in zip(utils.prompts_vd, suffixes)]
    assert (
        all(set(words) <= {"a", "red", "dog"} for words in kept) and min(map(len, kept)) < 3
    )  # random weights drop some


def test_dummy_needs_no_model_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    utils = find("dummy-prompt-processor")({})()
    assert utils.text_embeddings.shape == (1, 1, 1) and utils.text_embeddings_vd.shape == (4, 1, 1)
    assert not list(tmp_path.iterdir())


def test_many_texts_are_embedded_at_once(teacher, monkeypatch, caplog):
    processor = make(teacher)
    calls = []
    kind, encode_now = type(processor), type(processor).spawn_func
    monkeypatch.setattr(
        kind,
        "spawn_func",
        staticmethod(lambda name, prompts, folder: (calls.append(prompts), encode_now(name, prompts, folder))),
    )
    caplog.clear()
    texts = ["a blue cone", "a red mug", "a green ball", "a blue cone"]
    with caplog.at_level(logging.WARNING):
        embedded = processor.embed([*texts, "a red cube " * 20])
    torch.testing.assert_close(embedded[:4], torch.cat([encode(teacher, text) for text in texts]), atol=1e-6, rtol=0)
    assert [len(prompts) for prompts in calls] == [3]  # the mug was known already, and nothing is encoded twice
    assert "longer prompts are cut" in caplog.text and "a red mug" not in caplog.text
