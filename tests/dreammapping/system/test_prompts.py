from __future__ import annotations

import json

import pytest
import torch
from dreammapping.errors import ConfigError
from dreammapping.system.image_report import picture_names
from dreammapping.system.prompts import PictureTexts, embed, read_prompts, slug


def test_files_hold_prompts(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("# mine\na red mug\n\n  a blue chair \n", encoding="utf-8")
    assert read_prompts(str(lines)) == ["a red mug", "a blue chair"]
    plain, named = tmp_path / "plain.json", tmp_path / "named.json"
    plain.write_text(json.dumps(["a", "b"]))
    named.write_text(json.dumps({"one": ["a"], "two": ["b", "c"]}))
    assert read_prompts(str(plain)) == ["a", "b"] and read_prompts(str(named), "two") == ["b", "c"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one"), (3, "must be a list"), (["a", ""], "''"), (["a", None], "None"),
        ("absent.txt", "absent.txt"), ([["a"]], "each must be a text"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_prompts(given, message):
    with pytest.raises(ConfigError, match="system.prompts") as caught:
        read_prompts(given)
    assert message in str(caught.value)


def test_lists_by_name_must_be_named(tmp_path):
    file = tmp_path / "named.json"
    file.write_text(json.dumps({"birds": ["a"], "boats": ["b"]}))
    with pytest.raises(ConfigError, match="prompt_list.*birds.*boats"):
        read_prompts(str(file))
    with pytest.raises(ConfigError, match="did you mean 'birds'"):
        read_prompts(str(file), "bird")
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_prompts(str(file), "birds")


def test_names_of_files_can_be_read():
    assert slug("a DSLR photo of: a/b, c.") == "a_DSLR_photo_of_a_b_c" and slug("??") == "picture"
    assert len(slug("word " * 50)) <= 60
    assert list(picture_names(["a mug", "a mug"], 1)) == ["00-a_mug", "01-a_mug"]
    assert list(picture_names(["a", "b"], 2)) == ["00-a-0", "00-a-1", "01-b-0", "01-b-1"]


def number(prompt: str) -> torch.Tensor:
    return torch.full((1, 2, 3), float(prompt))


class OnePrompt:
    """A processor as the original threestudio has them."""

    built: list[str] = []

    def __init__(self, prompt: str) -> None:
        self.built.append(prompt)
        self.prompt = prompt

    def __call__(self) -> PictureTexts:
        return PictureTexts(number(self.prompt), torch.zeros(1, 2, 3), None, (self.prompt,))

    def preprocess_prompt(self, prompt: str) -> str:
        return prompt.removeprefix("lib:")


class ManyPrompts(OnePrompt):
    built: list[str] = []

    def embed(self, texts):
        return torch.cat([number(text) for text in texts])


@pytest.mark.parametrize(("processor", "built"), [(OnePrompt, ["1", "2"]), (ManyPrompts, ["1"])])
def test_each_picture_gets_its_prompt_s_embedding(processor, built):
    processor.built.clear()
    texts, prompts = embed(processor, ["1", "lib:2", "1"], particles=2)
    assert prompts == ["1", "2", "1"] and processor.built == built
    assert texts.text_embeddings[:, 0, 0].tolist() == [1, 1, 2, 2, 1, 1]
    some = texts.of([3, 0, 3])
    stacked = some.get_text_embeddings(torch.zeros(3), torch.zeros(3), torch.zeros(3))
    assert stacked[:, 1, 2].tolist() == [2, 1, 2, 0, 0, 0]
