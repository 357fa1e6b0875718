"""A CLIP tokenizer whose words are the world's own.

Byte-pair merges are learnt from the word list alone until every word is one token, so that a caption of ten words is ten tokens.
The files have the layout of every Stable Diffusion tokenizer: `vocab.json` and `merges.txt`.
"""
from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
PIECES = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
"""How CLIP splits lower-case text before merging: runs of letters, single digits, runs of anything else."""


def learn_merges(pieces: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that turn every piece into one token.

    The most frequent pair is merged first and ties go by the alphabet, so that the same words always give the same tokens.
    """
    words = [[*piece[:-1], f"{piece[-1]}{WORD_END}"] for piece in pieces]
    merges = []
    while True:
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts:
            return merges
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges.append(pair)
        words = [merge_pair(word, pair) for word in words]


def merge_pair(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every occurrence of `pair` joined."""
    joined, i = [], 0
    while i < len(word):
        together = i + 1 < len(word) and (word[i], word[i + 1]) == pair
        joined.append(word[i] + word[i + 1] if together else word[i])
        i += 2 if together else 1
    return joined


def build_tokenizer(words: list[str], folder: Path, *, length: int) -> CLIPTokenizer:
    """Write the tokenizer for `words` into `folder` and return it.

    `length` is the number of tokens a prompt is padded or cut to, start and end included.
    """
    alphabet = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    merges = learn_merges(sorted({piece for word in words for piece in PIECES.findall(word.lower())}))
    tokens = dict.fromkeys([*alphabet, *(f"{a}{WORD_END}" for a in alphabet), *("".join(m) for m in merges), START, END])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, "add_prefix_space": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of one tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
