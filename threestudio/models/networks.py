"""Encodings and small networks by the names configs give them.

Names the core does not implement are passed to tiny-cuda-nn where that is installed. To add one here, write a class
beside the others and enter it in `ENCODINGS` or `NETWORKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from threestudio.errors import ConfigError, suggest
from threestudio.models.encodings import Frequency, Identity, ProgressiveBandFrequency, SphericalHarmonics
from threestudio.models.hash_grid import HashGrid, ProgressiveBandHashGrid
from threestudio.models.tcnn import TCNNEncoding, TCNNNetwork, wants_tcnn
from threestudio.utils.base import Updateable
from threestudio.utils.ops import get_activation
from threestudio.utils.triton_support import triton_runs

ENCODINGS: dict[str, Callable[[int, Mapping[str, Any]], nn.Module]] = {
    "Identity": Identity,
    "Frequency": Frequency,
    "ProgressiveBandFrequency": ProgressiveBandFrequency,
    "SphericalHarmonics": SphericalHarmonics,
    "HashGrid": HashGrid,
    "DenseGrid": HashGrid,
    "TiledGrid": HashGrid,
    "Grid": HashGrid,
    "ProgressiveBandHashGrid": ProgressiveBandHashGrid,
}


def _plain(config: Any, where: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config or {})
    if "otype" not in plain:
        raise ConfigError(f"{where} has no 'otype', the name of what to build; it is {plain}.")
    return plain


# ---- encodings ----


class CompositeEncoding(nn.Module, Updateable):
    """An encoding, with the raw coordinates `x * xyz_scale + xyz_offset` in front if `include_xyz`."""

    def __init__(
        self, encoding: nn.Module, include_xyz: bool = False, xyz_scale: float = 2.0, xyz_offset: float = -1.0
    ) -> None:
        super().__init__()
        self.encoding = encoding
        self.include_xyz, self.xyz_scale, self.xyz_offset = include_xyz, xyz_scale, xyz_offset
        self.n_input_dims = getattr(encoding, "n_input_dims", 3)
        self.n_output_dims = int(include_xyz) * self.n_input_dims + encoding.n_output_dims

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Coordinates [N, D] in [0, 1] -> [N, n_output_dims]."""
        encoded = self.encoding(x, *args)
        if not self.include_xyz:
            return encoded
        return torch.cat([x * self.xyz_scale + self.xyz_offset, encoded], dim=-1)


def get_encoding(n_input_dims: int, config: Any) -> CompositeEncoding:
    """Build the encoding `config.otype` (see `ENCODINGS`; others need tiny-cuda-nn).

    Args:
        n_input_dims: number of coordinates D.
        config: mapping with `otype`, its parameters, and optionally `include_xyz`.
    """
    plain = _plain(config, "The encoding config")
    build = ENCODINGS.get(plain["otype"])
    encoding = TCNNEncoding(n_input_dims, plain, ENCODINGS) if build is None else build(n_input_dims, plain)
    encoding.n_input_dims = n_input_dims
    return CompositeEncoding(encoding, include_xyz=bool(plain.get("include_xyz", False)))


# ---- networks ----


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VanillaMLP(nn.Module):
    """Linear layers without bias, in float32 also under autocast.

    Config: `n_neurons` (64), `n_hidden_layers` (1), `activation` (ReLU), `output_activation` (none), `precision`
    (float32; bfloat16 or float16 for the layers on a CUDA GPU, the result in float32. No loss is scaled: in float16
    gradients below 6e-8 vanish), `backend` (auto: layers that `mlp_triton` can do, it does where Triton runs; torch).
    """

    def __init__(self, dim_in: int, dim_out: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.n_neurons, self.n_hidden_layers = int(config.get("n_neurons", 64)), int(config.get("n_hidden_layers", 1))
        if self.n_hidden_layers < 0 or self.n_neurons < 1:
            raise ConfigError(
                f"network {config['otype']}: n_neurons is {self.n_neurons} and n_hidden_layers {self.n_hidden_layers}; "
                "they must be at least 1 and 0."
            )
        activation = get_activation(config.get("activation", "ReLU"))
        widths = [dim_in, *[self.n_neurons] * self.n_hidden_layers, dim_out]
        layers: list[nn.Module] = []
        for k, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:])):
            if k:
                layers.append(_Activation(activation))
            layers.append(self.make_linear(n_in, n_out, is_first=k == 0, is_last=k == self.n_hidden_layers))
        self.layers = nn.Sequential(*layers)
        self.output_activation = get_activation(config.get("output_activation"))
        precision = str(config.get("precision", "float32"))
        if precision not in PRECISIONS:
            raise ConfigError(
                f"network {config['otype']}: precision is {precision!r}. {suggest(precision, PRECISIONS)}"
            )
        self.half = PRECISIONS[precision]
        relu = str(config.get("activation", "ReLU")).lower() == "relu"
        self.may_fuse = relu and self.half is None and config.get("backend", "auto") != "torch"

    def make_linear(self, dim_in: int, dim_out: int, is_first: bool, is_last: bool) -> nn.Module:
        return nn.Linear(dim_in, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim_in] -> [N, dim_out]."""
        x = x.to(next(self.parameters()).dtype)
        half = self.half if x.is_cuda else None
        with torch.autocast(device_type=x.device.type, dtype=half, enabled=half is not None):
            values = self._apply_layers(x).to(x.dtype)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return self.output_activation(values)

    def _apply_layers(self, x: Tensor) -> Tensor:
        if self.may_fuse and triton_runs(x.device):
            from threestudio.models import mlp_triton  # only here is Triton sure to be

            if mlp_triton.fits(self.layers, x):
                return mlp_triton.two_layers(x, self.layers[0].weight, self.layers[-1].weight)
        return self.layers(x)


class _Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _softplus100(x: Tensor) -> Tensor:
    return nn.functional.softplus(x, beta=100)


class SphereInitVanillaMLP(VanillaMLP):
    """A network that starts as the signed distance to a sphere (SAL, Atzmon & Lipman 2020; IGR).

    Config: as VanillaMLP, and `sphere_init_radius` (0.5), `inside_out` (False: negative inside). Its first three inputs
    must be the coordinates in [-1, 1] (`include_xyz: true`); the others start without influence.
    """

    def __init__(self, dim_in: int, dim_out: int, config: Mapping[str, Any]) -> None:
        self._radius = float(config.get("sphere_init_radius", 0.5))
        self._sign = -1.0 if config.get("inside_out", False) else 1.0
        self.sphere_init, self.weight_norm = True, True
        super().__init__(dim_in, dim_out, {**config, "activation": "none"})
        for layer in self.layers:
            if isinstance(layer, _Activation):
                layer.function = _softplus100

    def make_linear(self, dim_in: int, dim_out: int, is_first: bool, is_last: bool) -> nn.Module:
        layer = nn.Linear(dim_in, dim_out, bias=True)
        with torch.no_grad():
            if is_last:
                layer.weight.normal_(self._sign * math.sqrt(math.pi / dim_in), 1e-4)
                layer.bias.fill_(-self._sign * self._radius)
            else:
                layer.weight.normal_(0.0, math.sqrt(2.0 / dim_out))
                layer.bias.zero_()
                if is_first:
                    layer.weight[:, 3:] = 0.0
        # A zero row has no direction; only the columns of the first layer are zero, so rows keep one.
        return weight_norm(layer)


class TCNNShapedMLP(VanillaMLP):
    """tiny-cuda-nn's FullyFusedMLP and CutlassMLP without it: a float32 network of the same shape, without bias.

    Config: `n_neurons` (128), `n_hidden_layers` (5), `activation` (ReLU), `output_activation` (None). The parameters
    are not laid out as tiny-cuda-nn's, and it computes in float16: a checkpoint of one does not load into the other.
    """

    def __init__(self, dim_in: int, dim_out: int, config: Mapping[str, Any]) -> None:
        super().__init__(dim_in, dim_out, {"n_neurons": 128, "n_hidden_layers": 5, **config})


def fused_mlp(dim_in: int, dim_out: int, config: Mapping[str, Any]) -> nn.Module:
    """tiny-cuda-nn's network if the config's `backend` (auto, torch, tcnn) and the machine say so, else ours."""
    if wants_tcnn(config, "network"):
        return TCNNNetwork(dim_in, dim_out, config, [f"{config['otype']} with backend: torch", *NETWORKS])
    return TCNNShapedMLP(dim_in, dim_out, config)


NETWORKS: dict[str, Callable[[int, int, Mapping[str, Any]], nn.Module]] = {
    "VanillaMLP": VanillaMLP,
    "SphereInitVanillaMLP": SphereInitVanillaMLP,
    "FullyFusedMLP": fused_mlp,
    "CutlassMLP": fused_mlp,
}


def get_mlp(n_input_dims: int, n_output_dims: int, config: Any) -> nn.Module:
    """Build the network `config.otype` (see `NETWORKS`; others need tiny-cuda-nn), [N, n_in] -> [N, n_out]."""
    plain = _plain(config, "The network config")
    build = NETWORKS.get(plain["otype"])
    if build is None:
        return TCNNNetwork(n_input_dims, n_output_dims, plain, NETWORKS)
    return build(n_input_dims, n_output_dims, plain)


# ---- both ----


class NetworkWithInputEncoding(nn.Module, Updateable):
    """A network behind an encoding."""

    def __init__(self, encoding: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoding, self.network = encoding, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.encoding(x))


def create_network_with_input_encoding(
    n_input_dims: int, n_output_dims: int, encoding_config: Any, network_config: Any
) -> NetworkWithInputEncoding:
    """Coordinates [N, n_input_dims] in [0, 1] -> [N, n_output_dims]."""
    encoding = get_encoding(n_input_dims, encoding_config)
    return NetworkWithInputEncoding(encoding, get_mlp(encoding.n_output_dims, n_output_dims, network_config))


class ToDTypeWrapper(nn.Module):
    """A module whose result is converted to `dtype`."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.module(*args, **kwargs).to(self.dtype)
