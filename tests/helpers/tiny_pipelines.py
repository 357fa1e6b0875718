"""Miniature SDXL and SD3 folders with seeded random weights: the real classes and layouts, in kilobytes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers.tiny_teacher import (
    WORDS,
    make_text_encoder,
    make_tiny_teacher,
    make_vae,
    make_vocabulary,
    write_json,
    write_tokenizer,
)

LENGTH = 24
"""Tokens of the CLIP text models."""


def make_tiny(folder: str | Path, kind: str, **options: object) -> Path:
    """A folder of the kind sd, sdxl or sd3."""
    makers = {"sd": make_tiny_teacher, "sdxl": make_tiny_sdxl, "sd3": make_tiny_sd3}
    return makers[kind](folder, **options)


def make_tiny_sdxl(
    folder: str | Path,
    *,
    latent_size: int = 8,
    pooled: int = 12,
    prediction_type: str = "epsilon",
    force_zeros: bool = True,
    seed: int = 0,
) -> Path:
    """StableDiffusionXLPipeline: texts of width 24 (16 + 8) and a pooled vector; latents of 4 channels, images 4 times
    as wide. The scheduler is Euler's, as in SDXL's own folder, and the VAE asks for float32 (force_upcast)."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make_vae(4, 4 * latent_size, 4, scaling_factor=0.13025, force_upcast=True).save_pretrained(folder / "vae")
        UNet2DConditionModel(
            sample_size=latent_size,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=24,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=pooled + 6 * 8,
        ).save_pretrained(folder / "unet")
        _clip_pair(folder, (None, pooled))
    EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="leading",
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    _index(
        folder,
        "StableDiffusionXLPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        scheduler=["diffusers", "EulerDiscreteScheduler"],
        text_encoder=["transformers", "CLIPTextModel"],
        force_zeros_for_empty_prompt=force_zeros,
    )
    return folder


def make_tiny_sd3(
    folder: str | Path, *, latent_size: int = 8, shift: float = 3.0, newer: bool = False, t5: bool = True, seed: int = 0
) -> Path:
    """StableDiffusion3Pipeline: texts of width 32 and a pooled vector of 20 (12 + 8); latents of 16 channels with a
    shift factor, images 4 times as wide. `newer`: SD 3.5's further attention and normalization."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = make_vae(
            16,
            4 * latent_size,
            4,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        vae.save_pretrained(folder / "vae")
        SD3Transformer2DModel(
            sample_size=latent_size,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=20,
            pos_embed_max_size=3 * latent_size,
            **({"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if newer else {}),
        ).save_pretrained(folder / "transformer")
        _clip_pair(folder, (12, 8))
        if t5:
            _t5(folder)
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    _index(
        folder,
        "StableDiffusion3Pipeline",
        transformer=["diffusers", "SD3Transformer2DModel"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
        text_encoder=["transformers", "CLIPTextModelWithProjection"],
        text_encoder_3=["transformers", "T5EncoderModel"] if t5 else [None, None],
        tokenizer_3=["transformers", "T5TokenizerFast"] if t5 else [None, None],
    )
    return folder


def _clip_pair(folder: Path, projections: tuple[int | None, int | None]) -> None:
    """Two text encoders of width 16 and 8, and their tokenizers."""
    vocabulary, merges = make_vocabulary(WORDS.split())
    for part, width, projection in zip(("", "_2"), (16, 8), projections):
        model = make_text_encoder(len(vocabulary), width, LENGTH, projection=projection)
        model.save_pretrained(folder / f"text_encoder{part}")
        write_tokenizer(folder / f"tokenizer{part}", vocabulary, merges, LENGTH)


def _t5(folder: Path) -> None:
    """A T5 encoder of width 32 and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in WORDS.split())]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=LENGTH)
    fast.save_pretrained(folder / "tokenizer_3")
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")


def _index(folder: Path, pipeline: str, **parts: object) -> None:
    shared = {
        "_class_name": pipeline,
        "_diffusers_version": "0.30.0",
        "vae": ["diffusers", "AutoencoderKL"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    write_json(folder / "model_index.json", {**shared, **parts})
