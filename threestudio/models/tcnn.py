"""The door to tiny-cuda-nn, which the core can use but does not need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.errors import ConfigError, UserError


class MissingTinyCudaNNError(UserError, ImportError):
    """A config names something only tiny-cuda-nn has, and that isn't usable here."""


def _tinycudann(kind: str, otype: str, covered: Iterable[str]) -> ModuleType:
    known = f"Without it, these {kind}s are available: {', '.join(covered)}."
    if not torch.cuda.is_available():
        raise MissingTinyCudaNNError(
            f"The {kind} {otype!r} comes from tiny-cuda-nn, which needs a CUDA GPU; there is none here. {known}"
        )
    try:
        import tinycudann
    except ImportError as error:
        raise MissingTinyCudaNNError(
            f"The {kind} {otype!r} comes from tiny-cuda-nn, which is not installed. It is not on PyPI; with a CUDA "
            "compiler: pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'. " + known
        ) from error
    return tinycudann


class TCNNEncoding(nn.Module):
    """An encoding of tiny-cuda-nn, [N, D] in [0, 1] -> [N, n_output_dims] float32."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any], covered: Iterable[str]) -> None:
        super().__init__()
        tcnn = _tinycudann("encoding", config["otype"], covered)
        try:
            self.encoding = tcnn.Encoding(n_input_dims, dict(config), dtype=torch.float32)
        except RuntimeError as error:
            raise ConfigError(f"tiny-cuda-nn refuses the encoding {dict(config)}: {error}") from error
        self.n_output_dims: int = self.encoding.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        return self.encoding(x)


class TCNNNetwork(nn.Module):
    """A network of tiny-cuda-nn, [N, n_in] -> [N, n_out] float32."""

    def __init__(
        self, n_input_dims: int, n_output_dims: int, config: Mapping[str, Any], covered: Iterable[str]
    ) -> None:
        super().__init__()
        tcnn = _tinycudann("network", config["otype"], covered)
        try:
            self.network = tcnn.Network(n_input_dims, n_output_dims, dict(config))
        except RuntimeError as error:
            raise ConfigError(f"tiny-cuda-nn refuses the network {dict(config)}: {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).float()
