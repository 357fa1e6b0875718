"""A miniature Stable Diffusion folder with seeded random weights, for tests (SDXL and SD3: tiny_pipelines.py).

Same layout, same classes and same loading path as the real thing; a few hundred kilobytes and milliseconds per call.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch

WORDS = (
    "a an the of on with red green blue yellow white black purple orange cube ball cone mug chair house car table "
    "wooden metal plain striped spotted checkered front side back overhead view backside blurry ugly low quality"
)
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tiny_teacher(
    folder: str | Path,
    *,
    latent_channels: int = 4,
    image_size: int = 32,
    downsample: int = 4,
    prediction_type: str = "epsilon",
    width: int = 16,
    text_width: int = 16,
    text_length: int = 24,
    seed: int = 0,
) -> Path:
    """Write a complete text-to-image folder (vae, unet, scheduler, text_encoder, tokenizer, model_index.json); return
    its path.

    Latents are [latent_channels, image_size / downsample, image_size / downsample]; `downsample` is a power of two.
    `width` is the U-Net's first width (a multiple of 8), `text_length` the tokenizer's maximum length.
    The same arguments give the same weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = make_vocabulary(WORDS.split())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make_vae(latent_channels, image_size, downsample).save_pretrained(folder / "vae")
        _unet(latent_channels, image_size // downsample, width, text_width).save_pretrained(folder / "unet")
        make_text_encoder(len(vocabulary), text_width, text_length).save_pretrained(folder / "text_encoder")
    _scheduler(prediction_type).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", vocabulary, merges, text_length)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.19.0",
            "vae": ["diffusers", "AutoencoderKL"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        },
    )
    return folder


def make_vae(latent_channels: int, image_size: int, downsample: int, **options: object) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    levels = downsample.bit_length()  # n levels halve n - 1 times
    return AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=image_size,
        **{"scaling_factor": 0.18215, **options},
    )


def _unet(latent_channels: int, latent_size: int, width: int, text_width: int) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=text_width,
    )


def make_text_encoder(
    vocabulary_size: int, width: int, length: int, *, projection: int | None = None
) -> torch.nn.Module:
    """A CLIP text model, with a projection of its pooled output if its width is given."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1,
        pad_token_id=vocabulary_size - 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _scheduler(prediction_type: str) -> object:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE: printable Latin-1 as is, the rest from code point 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def make_vocabulary(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair encoding learned until every word of `words` is one token."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in zip(parts, parts[1:]))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def write_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], length: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True},
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
