"""A miniature Shap-E folder with seeded random weights, for tests: diffusers' own classes, in openai/shap-e's layout.

Its objects are balls of radius about 0.6 with dents, which depend on the latent, and so on seed and (weakly) prompt: with
plain random weights the field would be noise that fills the volume.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tabletop.shap_e.marching_cubes import triangle_table
from tests.helpers.tiny_teacher import WORDS, make_text_encoder, make_vocabulary, write_json, write_tokenizer

HIDDEN, WIDTH, TEXT, LENGTH = 16, 8, 16, 24
LAYERS = 4
"""Of the six hidden ones, those whose weights come from the latent."""
COSINES = slice(48, 51)
"""cos x, cos y, cos z among the 93 numbers that a position is encoded as."""


def make_tiny_shap_e(folder: str | Path, seed: int = 0) -> Path:
    """Write the folder; the same seed gives the same weights. Return its path."""
    folder = Path(folder)
    vocabulary, merges = make_vocabulary(WORDS.split())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _prior().save_pretrained(folder / "prior")
        make_text_encoder(len(vocabulary), TEXT, LENGTH, projection=TEXT).save_pretrained(folder / "text_encoder")
        make_renderer().save_pretrained(folder / "shap_e_renderer")
    _scheduler().save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", vocabulary, merges, LENGTH)
    parts = {
        "prior": ["diffusers", "PriorTransformer"],
        "scheduler": ["diffusers", "HeunDiscreteScheduler"],
        "shap_e_renderer": ["shap_e", "ShapERenderer"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    write_json(folder / "model_index.json", {"_class_name": "ShapEPipeline", "_diffusers_version": "0.30.0", **parts})
    return folder


@torch.no_grad()
def make_renderer(level: float = 2.78) -> torch.nn.Module:
    """A renderer whose first unit carries cos x + cos y + cos z - `level`, positive in a ball, through all layers to the
    signed distance. A level above 3 gives an empty object."""
    from diffusers.pipelines.shap_e import ShapERenderer

    names = tuple(f"nerstf.mlp.{i}.weight" for i in range(LAYERS))
    shapes = ((HIDDEN, 93), *((HIDDEN, HIDDEN),) * (LAYERS - 1))
    model = ShapERenderer(
        param_names=names, param_shapes=shapes, d_latent=WIDTH, d_hidden=HIDDEN, n_hidden_layers=6, insert_direction_at=LAYERS
    )
    model.mesh_decoder.cases, model.mesh_decoder.masks = triangle_table()
    octaves = torch.cat([torch.zeros(3), torch.arange(15.0).repeat_interleave(3).repeat(2)])
    for index, projection in enumerate(model.params_proj.projections.values()):
        scale = 0.3 * 2.0**-octaves if index == 0 else torch.full((HIDDEN,), 0.3)
        projection.norm.weight.copy_(scale)
        bias = scale * torch.randn(HIDDEN, len(scale))
        bias[0] = 0.0
        bias[0, COSINES if index == 0 else 0] = 10.0 if index == 0 else 1.0
        projection.proj.bias.copy_(bias.reshape(-1))
        if index > 0:
            projection.proj.weight[: len(scale)] = 0.0  # the latent dents the ball in the first layer only
    layers = model.mlp.mlp
    layers[0].bias[0] = -10.0 * level
    for layer in layers[LAYERS:]:
        layer.weight[0] = 0.0
        layer.weight[0, 0] = 1.0
        layer.bias[0] = -0.02 if layer is layers[-1] else 0.0
    layers[-1].weight[3:6] = 8.0 * torch.randn(3, HIDDEN)
    return model


def _prior() -> torch.nn.Module:
    from diffusers import PriorTransformer

    return PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=WIDTH, num_embeddings=LAYERS * HIDDEN,
        additional_embeddings=0, time_embed_act_fn="gelu", norm_in_type="layer", encoder_hid_proj_type=None, added_emb_type=None,
        embedding_proj_dim=TEXT, clip_embed_dim=2 * WIDTH,
    )  # fmt: skip


def _scheduler() -> object:
    from diffusers import HeunDiscreteScheduler

    return HeunDiscreteScheduler(
        num_train_timesteps=1024, beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True, clip_sample=True,
        clip_sample_range=1.0,
    )  # fmt: skip
