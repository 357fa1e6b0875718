"""The door to tiny-cuda-nn, which the core can use but does not need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.errors import ConfigError, UserError, suggest
from threestudio.utils.misc import get_device

BACKENDS = {"encoding": ("auto", "torch", "triton", "tcnn"), "network": ("auto", "torch", "tcnn")}


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


def wants_tcnn(config: Mapping[str, Any], kind: str) -> bool:
    """Whether tiny-cuda-nn shall build what the core could build too; the config's `backend` decides.

    "auto" (default): if it is installed and the run is on a CUDA GPU. "tcnn": always. Any other: never.
    """
    backend = str(config.get("backend", "auto"))
    if backend not in BACKENDS[kind]:
        raise ConfigError(f"{kind} {config['otype']}: backend is {backend!r}. {suggest(backend, BACKENDS[kind])}")
    if backend != "auto":
        return backend == "tcnn"
    if not torch.cuda.is_available() or get_device().type != "cuda":
        return False
    try:
        import tinycudann  # noqa: F401
    except (ImportError, OSError):  # OSError: built for another GPU
        return False
    return True


def _own_keys_removed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "backend"}


class TCNNEncoding(nn.Module):
    """An encoding of tiny-cuda-nn, [N, D] in [0, 1] -> [N, n_output_dims] float32."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any], covered: Iterable[str]) -> None:
        super().__init__()
        tcnn = _tinycudann("encoding", config["otype"], covered)
        try:
            self.encoding = tcnn.Encoding(n_input_dims, _own_keys_removed(config), dtype=torch.float32)
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
            self.network = tcnn.Network(n_input_dims, n_output_dims, _own_keys_removed(config))
        except RuntimeError as error:
            raise ConfigError(f"tiny-cuda-nn refuses the network {dict(config)}: {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).float()
