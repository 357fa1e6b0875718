"""A CLIP tokenizer whose words are the world's own.

Byte-pair merges are learnt from the word list alone until every word is one token, so that a caption of ten words is ten tokens.
The files have the layout of every Stable Diffusion tokenizer: `vocab.json` and `merges.txt`.
"""
from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
PIECES = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
"""How CLIP splits lower-case text before merging: runs of letters, single digits, runs of anything else."""


def build_tokenizer(words: list[str], folder: Path, *, length: int) -> CLIPTokenizer:
    """Write the tokenizer for `words` into `folder` and return it.

    `length` is the number of tokens a prompt is padded or cut to, start and end included.
    """
    alphabet = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = sorted({piece for word in words for piece in PIECES.findall(word.lower())})
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=0, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(pieces, trainer)
    learnt = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in learnt]
    tokens = dict.fromkeys([*alphabet, *(f"{a}</w>" for a in alphabet), *("".join(m) for m in merges), START, END])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, "add_prefix_space": False,
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    return CLIPTokenizer.from_pretrained(folder)
