"""A miniature CLIP folder of the real classes with seeded random weights, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers.tiny_teacher import WORDS, make_vocabulary, write_json, write_tokenizer

LENGTH, SIDE = 12, 16


def make_tiny_clip(folder: str | Path, seed: int = 0) -> Path:
    """Write config, safetensors weights, tokenizer and preprocessor in transformers' layout; return the folder."""
    from transformers import CLIPConfig, CLIPModel

    folder = Path(folder)
    vocabulary, merges = make_vocabulary(WORDS.split())
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 12}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1, "pad_token_id": len(vocabulary) - 1}
    text = {**small, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": LENGTH}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": SIDE, "patch_size": 4}, projection_dim=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for weights in model.parameters():  # larger than at the start of a training, so that pictures differ
            torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder)
    write_tokenizer(folder, vocabulary, merges, LENGTH)
    shown = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3, "rescale_factor": 1 / 255}
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    colors = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", **shown, **steps, **colors})
    return folder
