"""The networks of the embedded Shap-E: diffusers' and transformers' classes in openai/shap-e's layout, only small, and the encoder that trains them."""
from __future__ import annotations

import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer
from diffusers.pipelines.shap_e import ShapERenderer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from .. import primitives as layout
from ..materials import PATTERNS
from ..models import PROMPT_LENGTH
from .marching_cubes import triangle_table
from .objects import Objects

HIDDEN = 64
"""Width of the network that describes an object. Its first four layers are the object's own."""
OWN_LAYERS = 4
ROWS = OWN_LAYERS * HIDDEN
"""Rows of a latent: one for each row of the four layers' weights."""
ROW_WIDTH = 16
POSITION_WIDTH = 93  # 3 + 3 * 15 sines + 3 * 15 cosines
TEXT_WIDTH = 128


def renderer() -> ShapERenderer:
    """What turns a latent [ROWS, ROW_WIDTH] into signed distance, density and color (openai/shap-e: 1024 x 1024)."""
    names = tuple(f"nerstf.mlp.{i}.weight" for i in range(OWN_LAYERS))
    shapes = ((HIDDEN, POSITION_WIDTH), *((HIDDEN, HIDDEN),) * (OWN_LAYERS - 1))
    model = ShapERenderer(param_names=names, param_shapes=shapes, d_latent=ROW_WIDTH, d_hidden=HIDDEN, n_hidden_layers=6, insert_direction_at=OWN_LAYERS)
    model.mesh_decoder.cases, model.mesh_decoder.masks = triangle_table()
    _start_smooth(model)
    return model


@torch.no_grad()
def _start_smooth(model: ShapERenderer) -> None:
    """Initial weights of a usual size, that fall with the frequency of the position's sines, which would be noise otherwise."""
    for index, projection in enumerate(model.params_proj.projections.values()):
        scale = (2.0 / projection.channels) ** 0.5 * torch.ones(projection.channels)
        if index == 0:
            octave = torch.cat([torch.zeros(3), torch.arange(15.0).repeat_interleave(3).repeat(2)])  # sines, then cosines, x y z inside
            scale = 0.4 * 2.0**-octave
        projection.norm.weight.copy_(scale)
        projection.proj.bias.copy_((torch.randn(projection.vectors, projection.channels) * scale).reshape(-1))
    model.mlp.mlp[-1].bias[1:3] = 1.0  # the densities pass a relu, which must not begin dead


def scheduler() -> HeunDiscreteScheduler:
    """Shap-E's: noise that grows exponentially, 1,024 steps, the clean latent predicted."""
    return HeunDiscreteScheduler(
        num_train_timesteps=1024, beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True, clip_sample=True, clip_sample_range=1.0,
    )


def prior() -> PriorTransformer:
    """3.6 M parameters. Each row of the latent is one token, after the text's and the time's."""
    return PriorTransformer(
        num_attention_heads=6, attention_head_dim=32, num_layers=8, embedding_dim=ROW_WIDTH, num_embeddings=ROWS, additional_embeddings=0,
        time_embed_act_fn="gelu", norm_in_type="layer", encoder_hid_proj_type=None, added_emb_type=None, embedding_proj_dim=TEXT_WIDTH,
        clip_embed_dim=2 * ROW_WIDTH,  # mean and variance, of which only the mean is used, as in openai/shap-e
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=3 * TEXT_WIDTH, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=PROMPT_LENGTH, hidden_act="gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=TEXT_WIDTH,
    ))


def primitive_features(objects: Objects) -> Tensor:
    """[N, P, F]: where each primitive is, how it is turned, its sizes, kind and color, in numbers of the order of 1."""
    rows = objects.rows.transpose(1, 2)  # [N, P, ROW]
    used = (rows[..., layout.ROUND] > -50.0).float()[..., None]
    scale = 1 / rows[..., layout.INVERSE_SCALE : layout.INVERSE_SCALE + 3].clamp_min(1e-6)
    turn = rows[..., :9].unflatten(-1, (3, 3)) * scale[..., None]  # object to local axes
    center = -(turn.transpose(-1, -2) @ (rows[..., layout.OFFSET : layout.OFFSET + 3] * scale)[..., None])[..., 0]
    half = rows[..., layout.HALF : layout.HALF + 3] * scale
    sizes = torch.cat([half, scale * rows[..., layout.ROUND, None], scale[..., :1] * rows[..., layout.RING, None]], -1)
    waves = torch.cat([torch.cat([center, sizes], -1) * (2.0**k) for k in range(1, 5)], -1)
    kind = rows[..., [layout.IS_BALL, layout.REVOLVED, layout.ARC_SIN, layout.ARC_COS, layout.TAPER]]
    group = torch.nn.functional.one_hot(rows[..., layout.GROUP].long().clamp(0, 2), 3)
    own = torch.cat([objects.colors, objects.is_main[..., None]], -1)
    features = [turn.flatten(-2), center, sizes, waves.sin(), waves.cos(), kind, group, own, torch.ones_like(used)]
    return torch.cat(features, -1) * used


def surface_features(objects: Objects) -> Tensor:
    """[N, F]: the pattern with its period and phase."""
    pattern = torch.nn.functional.one_hot(objects.pattern, len(PATTERNS))
    angle = 2 * torch.pi * objects.phase[:, None]
    return torch.cat([pattern, 20 * (objects.period[:, None] - 0.25), angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()], -1)


class ObjectEncoder(nn.Module):
    """An object's description to its latent [N, ROWS, ROW_WIDTH] in (-1, 1)."""

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 8):
        super().__init__()
        features = 9 + 10 + 10 * 8 + 5 + 3 + 4 + 1  # as primitive_features lists them
        self.parts = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.surface = nn.Linear(len(PATTERNS) + 5, width)
        self.slots = nn.Parameter(0.02 * torch.randn(layout.MAX_PRIMITIVES + 1, width))
        self.queries = nn.Parameter(0.5 * torch.randn(ROWS, width))
        options = dict(dim_feedforward=2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.mix = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, heads, **options), layers, enable_nested_tensor=False)
        self.read = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, heads, **options), 2)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ROW_WIDTH))

    def forward(self, parts: Tensor, surface: Tensor) -> Tensor:
        """parts [N, P, F] from `primitive_features`, surface [N, F'] from `surface_features`."""
        tokens = torch.cat([self.parts(parts), self.surface(surface)[:, None]], dim=1) + self.slots
        read = self.read(self.queries.expand(len(tokens), -1, -1), self.mix(tokens))
        return torch.tanh(self.out(read))
