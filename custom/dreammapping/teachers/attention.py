"""Fewer and larger matrix products in a U-Net's attention, with the same results up to rounding.

Self-attention asks for query, key and value in one product. Cross-attention reads the text, the same in all layers: one
product gives the keys and values of all of them, and each layer takes its part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextProjection:
    """Tokens [B,L,E] -> keys and values of all cross-attentions, [B,L,sum of 2 x inner width]."""

    def __init__(self, weight: Tensor) -> None:
        """`weight` [sum of 2 x inner width, E]."""
        self._weight = weight

    def __call__(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self._weight)


def fuse_projections(network: nn.Module) -> TextProjection | None:
    """Fuse the attention's projections of a U-Net in place; None if it has other kinds of attention.

    Afterwards the network takes the result as its encoder_hidden_states. The weights are shared, not copied: to_q, to_k
    and to_v stay, and a deep copy of the network computes with them again. To be called again whenever the network has
    been moved.
    """
    layers = [m for m in network.modules() if _is_attention(m)]
    if not layers or not all(_is_plain(layer) for layer in layers):
        return None
    crossing = [layer for layer in layers if layer.is_cross_attention]
    if not crossing:
        return None
    start, text_weights = 0, [w for layer in crossing for w in (layer.to_k.weight, layer.to_v.weight)]
    text = _joined(text_weights)
    for layer in layers:
        if layer.is_cross_attention:
            width = layer.to_k.out_features
            layer.set_processor(CrossAttention(start, width))
            start += 2 * width
        else:
            layer.set_processor(SelfAttention(_joined([layer.to_q.weight, layer.to_k.weight, layer.to_v.weight])))
    return TextProjection(text)


class SelfAttention:
    """A diffusers attention processor: query, key and value from one product."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        query, key, value = F.linear(hidden_states, self.weight).chunk(3, -1)
        return _attend(attn, query, key, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _plain_processor()


class CrossAttention:
    """A diffusers attention processor that finds its keys and values in the projected text."""

    def __init__(self, start: int, width: int) -> None:
        self.start, self.width = start, width

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        key, value = encoder_hidden_states.narrow(-1, self.start, 2 * self.width).chunk(2, -1)
        return _attend(attn, attn.to_q(hidden_states), key, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _plain_processor()


def _attend(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt d) v over the heads, and the output's projection; tokens [B,N,inner] each."""
    query, key, value = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)]
    found = F.scaled_dot_product_attention(query, key, value)
    return attn.to_out[0](found.transpose(1, 2).flatten(2))


def _joined(weights: list[Tensor]) -> Tensor:
    """The weights [out_i,in] as one [sum,in], which they share from now on."""
    joined = torch.cat([w.data for w in weights])
    for weight, part in zip(weights, joined.split([len(w) for w in weights])):
        weight.data = part
    return joined


def _is_attention(module: nn.Module) -> bool:
    from diffusers.models.attention_processor import Attention

    return isinstance(module, Attention)


def _is_plain(layer: Any) -> bool:
    """Whether the layer does what the processors here do: no norms, biases, residuals or masks of its own."""
    projections = (layer.to_q, layer.to_k, layer.to_v)
    nothing = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
    return (
        type(layer.processor) in (type(_plain_processor()), SelfAttention, CrossAttention)
        and all(type(p) is nn.Linear and p.bias is None for p in projections)
        and not any(getattr(layer, name, None) is not None for name in nothing)
        and not layer.residual_connection
        and layer.rescale_output_factor == 1.0
    )


def _plain_processor() -> Any:
    from diffusers.models.attention_processor import AttnProcessor2_0

    return AttnProcessor2_0()
