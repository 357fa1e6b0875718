"""Encoding prompts for models in diffusers' layout with one, two or three text encoders.

Every prompt becomes one tensor. Models that read a pooled vector [P] beside the tokens [L, E] (SDXL, SD3) get a packed
one, [L + k, E] with k = ceil(P / E): the tokens, then the pooled vector cut into k rows and filled up with zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from threestudio import warn
from threestudio.errors import PretrainedError
from threestudio.utils.pretrained import ResolvedPretrained, load_part, only_variant

SD, SDXL, SD3 = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"


@torch.no_grad()
def encode_prompts(resolved: ResolvedPretrained, prompts: Sequence[str], device: torch.device) -> Iterator[Tensor]:
    """One float32 tensor [L, E] (or packed, see above) on the CPU per prompt.

    SDXL and SD3 are encoded by diffusers' own pipelines. For SDXL an empty prompt is all zeros if the model's
    force_zeros_for_empty_prompt says so, as where its pipeline is given no negative prompt.

    Raises:
        PretrainedError: a part is missing, damaged or of an unknown pipeline.
    """
    pipeline = pipeline_class(resolved)
    if pipeline == SD:
        yield from _encode_clip(resolved, prompts, device)
        return
    if pipeline not in (SDXL, SD3):
        raise PretrainedError(
            f"The pretrained model {resolved.name!r} is a {pipeline}; prompts are encoded for {SD}, {SDXL} and {SD3}."
        )
    encoder = _sdxl(resolved, device) if pipeline == SDXL else _sd3(resolved, device)
    zeros = getattr(encoder.config, "force_zeros_for_empty_prompt", False)
    more = {} if pipeline == SDXL else {"prompt_3": None}
    for prompt in prompts:
        # One at a time: in a batch, rounding would make an embedding depend on its neighbors.
        tokens, _, pooled, _ = encoder.encode_prompt(
            prompt, prompt_2=None, **more, device=device, do_classifier_free_guidance=False
        )
        packed = pack(tokens[0].float().cpu(), pooled[0].float().cpu())
        yield torch.zeros_like(packed) if zeros and not prompt else packed


def pack(tokens: Tensor, pooled: Tensor) -> Tensor:
    """[L, E] and [P] -> [L + ceil(P / E), E]."""
    rows = -(-pooled.shape[0] // tokens.shape[1])
    filled = tokens.new_zeros(rows * tokens.shape[1])
    filled[: pooled.shape[0]] = pooled
    return torch.cat([tokens, filled.view(rows, -1)])


def pipeline_class(resolved: ResolvedPretrained) -> str:
    """The pipeline of a model, from its model_index.json; a folder without one, but with a single text encoder, is
    taken for Stable Diffusion."""
    file = resolved.path / "model_index.json"
    if not file.is_file():
        several = (resolved.path / "text_encoder_2").is_dir()
        return "folder without model_index.json" if several else SD
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise PretrainedError(f"{file} is damaged: it names no _class_name.") from error


def load_tokenizer(resolved: ResolvedPretrained) -> tuple[Any, int]:
    """The first tokenizer and the number of tokens L its text encoder takes."""
    from transformers import CLIPTokenizer

    tokenizer = load_part(CLIPTokenizer.from_pretrained, resolved, "tokenizer")
    config = resolved.path / "text_encoder" / "config.json"
    positions = tokenizer.model_max_length  # astronomically large if the tokenizer's files don't say
    if config.is_file():
        positions = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings", positions)
    return tokenizer, min(int(positions), int(tokenizer.model_max_length))


def load_text_encoder(
    kind: Any, resolved: ResolvedPretrained, part: str = "text_encoder", dtype: torch.dtype = torch.float32
) -> Any:
    """A text model of class `kind`; PretrainedError if some of its weights are missing."""
    model, report = load_part(
        kind.from_pretrained,
        resolved,
        part,
        use_safetensors=True,
        output_loading_info=True,
        variant=only_variant(resolved.path / part),
        torch_dtype=dtype,
    )
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise PretrainedError(
            f"The weights in {resolved.path / part} lack {len(missing)} tensors, such as {missing[0]}; the model "
            "would answer at random. Get the folder again."
        )
    return model.eval()


def _encode_clip(resolved: ResolvedPretrained, prompts: Sequence[str], device: torch.device) -> Iterator[Tensor]:
    """Stable Diffusion 1 and 2: CLIP's last hidden states."""
    from transformers import CLIPTextModel

    tokenizer, length = load_tokenizer(resolved)
    text_encoder = load_text_encoder(CLIPTextModel, resolved).to(device)
    for prompt in prompts:
        tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        yield text_encoder(tokens.input_ids.to(device))[0][0].cpu().clone()


def _sdxl(resolved: ResolvedPretrained, device: torch.device) -> Any:
    """SDXL's pipeline with nothing but its text parts."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    index = json.loads((resolved.path / "model_index.json").read_text(encoding="utf-8"))
    return StableDiffusionXLPipeline(
        text_encoder=load_text_encoder(CLIPTextModel, resolved).to(device),
        text_encoder_2=load_text_encoder(CLIPTextModelWithProjection, resolved, "text_encoder_2").to(device),
        tokenizer=load_part(CLIPTokenizer.from_pretrained, resolved, "tokenizer"),
        tokenizer_2=load_part(CLIPTokenizer.from_pretrained, resolved, "tokenizer_2"),
        vae=None,
        unet=None,
        scheduler=None,
        force_zeros_for_empty_prompt=index.get("force_zeros_for_empty_prompt", True),
        add_watermarker=False,
    )


def _sd3(resolved: ResolvedPretrained, device: torch.device) -> Any:
    """SD3's pipeline with nothing but its text parts. Without a text_encoder_3 folder (T5), its tokens are zeros."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    t5 = {"text_encoder_3": None, "tokenizer_3": None, "transformer": None}
    if (resolved.path / "text_encoder_3").is_dir():
        # Five billion parameters: on a GPU in half precision, in the type whose range T5 was trained in.
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        t5["text_encoder_3"] = load_text_encoder(T5EncoderModel, resolved, "text_encoder_3", dtype).to(device)
        t5["tokenizer_3"] = load_part(T5TokenizerFast.from_pretrained, resolved, "tokenizer_3")
    else:
        warn(f"{resolved.name} has no text_encoder_3 (T5): its prompts are read by the two CLIP models alone.")
        config = load_part(SD3Transformer2DModel.load_config, resolved, "transformer")
        with torch.device("meta"):  # the pipeline asks it for the width of the missing tokens
            t5["transformer"] = SD3Transformer2DModel.from_config(config)
    return StableDiffusion3Pipeline(
        text_encoder=load_text_encoder(CLIPTextModelWithProjection, resolved).to(device),
        text_encoder_2=load_text_encoder(CLIPTextModelWithProjection, resolved, "text_encoder_2").to(device),
        tokenizer=load_part(CLIPTokenizer.from_pretrained, resolved, "tokenizer"),
        tokenizer_2=load_part(CLIPTokenizer.from_pretrained, resolved, "tokenizer_2"),
        vae=None,
        scheduler=None,
        **t5,
    )
