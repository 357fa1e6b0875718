"""The classes everything configurable derives from, and the hooks that run before and after every batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn

from threestudio.errors import CheckpointError, ConfigError
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import get_device, load_module_weights


class Configurable:
    """Parses its config into `self.cfg` and does nothing else."""

    @dataclass
    class Config:
        pass

    def __init__(self, cfg: Any = None) -> None:
        self.cfg = parse_structured(self.Config, cfg)


class Updateable:
    """Gets `update_step` before and `update_step_end` after every batch, wherever it hangs in the system.

    The walk follows public attributes that are Updateable themselves (nn.Module children included): children before
    parents, by name, each object once per call. Properties and containers are not followed. Errors in a hook surface.
    """

    def do_update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Call `update_step` on everything below this object, then on it."""
        update_all([self], epoch, global_step, on_load_weights)

    def do_update_step_end(self, epoch: int, global_step: int) -> None:
        """Call `update_step_end` on everything below this object, then on it."""
        update_all_end([self], epoch, global_step)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Hook before a batch; `on_load_weights` is True right after weights were loaded, maybe still on the CPU."""

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """Hook after a batch; in training `global_step` has advanced already."""


def updateables(roots: Iterable[Any]) -> Iterator[Updateable]:
    """Everything Updateable reachable from `roots`: children first, by name, each once."""
    seen: set[int] = set()
    for root in roots:
        yield from _walk(root, seen)


def _walk(node: Any, seen: set[int]) -> Iterator[Updateable]:
    if not isinstance(node, Updateable) or id(node) in seen:
        return
    seen.add(id(node))
    for child in _children(node):
        yield from _walk(child, seen)
    yield node


def _children(node: Updateable) -> list[Any]:
    members = dict(vars(node))
    if isinstance(node, nn.Module):
        members.update(node._modules)  # nn.Module keeps its submodules out of __dict__
    return [members[name] for name in sorted(members) if not name.startswith("_")]


def update_all(roots: Iterable[Any], epoch: int, global_step: int, on_load_weights: bool = False) -> None:
    """`update_step` on everything Updateable reachable from `roots`, each object once."""
    for member in list(updateables(roots)):
        member.update_step(epoch, global_step, on_load_weights=on_load_weights)


def update_all_end(roots: Iterable[Any], epoch: int, global_step: int) -> None:
    """`update_step_end` on everything Updateable reachable from `roots`, each object once."""
    for member in list(updateables(roots)):
        member.update_step_end(epoch, global_step)


def update_if_possible(module: Any, epoch: int, global_step: int) -> None:
    """Run the hooks before a batch if `module` is Updateable."""
    if isinstance(module, Updateable):
        module.do_update_step(epoch, global_step)


def update_end_if_possible(module: Any, epoch: int, global_step: int) -> None:
    """Run the hooks after a batch if `module` is Updateable."""
    if isinstance(module, Updateable):
        module.do_update_step_end(epoch, global_step)


class BaseObject(Updateable):
    """A configurable part without parameters. Subclasses implement `configure`, not `__init__`."""

    @dataclass
    class Config:
        pass

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build the parts; gets the constructor's arguments after the config."""


class BaseModule(nn.Module, Updateable):
    """A configurable part with parameters. Subclasses implement `configure`, not `__init__`."""

    @dataclass
    class Config:
        weights: Optional[str] = None
        """`path:module_name`: load this module from the checkpoint's entries starting with `module_name.`, strictly."""

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)
        if self.cfg.weights is not None:
            self._load_own_weights(self.cfg.weights)
        self.register_buffer("_dummy", torch.zeros(0), persistent=False)  # where extensions look for the device

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build the parts; gets the constructor's arguments after the config."""

    def _load_own_weights(self, weights: str) -> None:
        path, colon, module_name = weights.rpartition(":")
        if not colon or not path or not module_name:
            raise ConfigError(
                f"weights is '{weights}'; it must be 'path/to/checkpoint.ckpt:module', such as 'last.ckpt:geometry'."
            )
        state, epoch, step = load_module_weights(path, module_name=module_name, map_location="cpu")
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"'{module_name}' in {path} does not fit {type(self).__name__}; "
                f"both must be built from the same config. {error}"
            ) from error
        self.do_update_step(epoch, step, on_load_weights=True)
