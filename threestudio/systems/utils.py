"""Optimizers and learning rate schedulers from their configs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from threestudio.errors import ConfigError, suggest
from threestudio.systems.optimizers import Adan

__all__ = [
    "check_all_trained",
    "get_parameters",
    "get_scheduler",
    "getattr_recursive",
    "parse_optimizer",
    "parse_scheduler",
    "parse_scheduler_to_instance",
    "plain",
]


def plain(value: Any) -> Any:
    """`value` without config nodes: dicts, tuples and scalars, so that checkpoints hold no configuration objects."""
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(entry) for entry in value)
    return value


def getattr_recursive(model: Any, path: str) -> Any:
    """The attribute at a dotted path, such as `geometry.encoding`.

    Raises:
        ConfigError: a part of the path does not exist; its nearest siblings are named.
    """
    current = model
    for part in path.split("."):
        try:
            current = getattr(current, part)
        except AttributeError as error:
            raise ConfigError(
                f"optimizer.params.{path}: {type(current).__name__} has no '{part}'. {suggest(part, _members(current))}"
            ) from error
    return current


def get_parameters(model: Any, name: str) -> Iterable[nn.Parameter]:
    """The parameters at a dotted path: a module's, a parameter itself, nothing for anything else."""
    target = getattr_recursive(model, name)
    if isinstance(target, nn.Module):
        return target.parameters()
    return [target] if isinstance(target, nn.Parameter) else []


def parse_optimizer(config: Any, model: nn.Module) -> Optimizer:
    """Build the optimizer of a config with `name`, `args` and optional `params` (dotted path -> options of its group).

    Without `params` all parameters of `model` form one group; with it only those listed are trained.

    Raises:
        ConfigError: unknown optimizer, option or path.
    """
    settings = plain(config)
    if "name" not in settings:
        raise ConfigError("system.optimizer needs a name, such as Adam.")
    cls = _optimizer_class(settings["name"])
    arguments = settings.get("args") or {}
    _check_arguments(cls, arguments, "system.optimizer.args")
    groups: Any = model.parameters()
    if settings.get("params"):
        groups = []
        for path, options in settings["params"].items():
            _check_arguments(cls, options or {}, f"system.optimizer.params.{path}")
            groups.append({"params": list(get_parameters(model, path)), "name": path, **(options or {})})
    return cls(groups, **arguments)


def check_all_trained(system: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """What a part leaves to the system's optimizer must be in it; else it would silently stay as it began.

    A part says so with an attribute `trained_by_system`: its parameters that no optimizer of its own trains.

    Raises:
        ConfigError: some of them are in none of the `optimizers`, with the entry that is missing.
    """
    trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for name, module in system.named_modules():
        left = [p for p in getattr(module, "trained_by_system", ()) if p.requires_grad and id(p) not in trained]
        if left:
            raise ConfigError(
                f"system.optimizer.params has no entry for {name}: {len(left)} parameters of {type(module).__name__}, "
                f"which the system's optimizer should train, would stay as they began. Add {name}: {{lr: 0.0001}}, and "
                f"take a system that builds its {name} before the optimizer, such as prolificdreamer-system."
            )


def get_scheduler(name: str) -> type:
    """The class called `name` in torch.optim.lr_scheduler.

    Raises:
        ConfigError: no such scheduler.
    """
    known = [
        key
        for key, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and not key.startswith("_")
    ]
    if name not in (*known, "ReduceLROnPlateau"):
        raise ConfigError(f"There is no scheduler '{name}'. {suggest(name, known)}")
    return getattr(lr_scheduler, name)


def parse_scheduler(config: Any, optimizer: Optimizer) -> dict[str, Any]:
    """What Lightning wants of a scheduler: `{"scheduler": ..., "interval": "epoch" or "step"}`.

    `SequentialLR` takes nested configs in `schedulers` and step numbers in `milestones`, `ChainedScheduler` takes
    `schedulers`. Other keys than these, `name`, `args` and `interval` are ignored, so a config can keep values there.

    Raises:
        ConfigError: unknown scheduler, option or interval.
    """
    settings = plain(config)
    interval = settings.get("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise ConfigError(f"system.scheduler.interval is '{interval}'; it must be 'epoch' or 'step'.")
    return {"scheduler": parse_scheduler_to_instance(settings, optimizer), "interval": interval}


def parse_scheduler_to_instance(config: Any, optimizer: Optimizer) -> Any:
    """The bare scheduler of a config, see `parse_scheduler`. `Sequential` and `Chained` are names for those two."""
    settings = plain(config)
    if "name" not in settings:
        raise ConfigError("system.scheduler needs a name, such as ExponentialLR.")
    name = settings["name"]
    if name in ("SequentialLR", "Sequential", "ChainedScheduler", "Chained"):
        parts = [parse_scheduler_to_instance(part, optimizer) for part in settings.get("schedulers") or ()]
        if not parts:
            raise ConfigError(f"The scheduler {name} needs a list of configs in 'schedulers'.")
        if name.startswith("Chained"):
            return lr_scheduler.ChainedScheduler(parts)
        milestones = list(settings.get("milestones") or ())
        if len(milestones) != len(parts) - 1:
            raise ConfigError(
                f"SequentialLR with {len(parts)} schedulers needs {len(parts) - 1} milestones, not {milestones}."
            )
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=milestones)
    cls = get_scheduler(name)
    arguments = settings.get("args") or {}
    _check_arguments(cls, arguments, "system.scheduler.args")
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    return cls(optimizer, **arguments)


def _optimizer_class(name: str) -> type[Optimizer]:
    if name == "Adan":
        return Adan
    if name == "FusedAdam":
        return _fused_adam()
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }
    if name not in known:
        raise ConfigError(f"There is no optimizer '{name}'. {suggest(name, [*known, 'Adan', 'FusedAdam'])}")
    return known[name]


def _fused_adam() -> type[Optimizer]:
    try:
        from apex.optimizers import FusedAdam
    except ImportError as error:
        raise ConfigError(
            "The optimizer FusedAdam needs NVIDIA apex, which is not installed. Use Adam with args: {fused: true}."
        ) from error
    return FusedAdam


def _check_arguments(cls: type, arguments: Mapping[str, Any], where: str) -> None:
    parameters = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name not in ("self", "params", "optimizer")]
    for name in arguments:
        if name not in known:
            raise ConfigError(f"{where}.{name} is unknown to {cls.__name__}. {suggest(name, known)}")


def _members(node: Any) -> list[str]:
    names = list(vars(node))
    if isinstance(node, nn.Module):
        names += [*node._modules, *node._parameters]
    return [name for name in names if not name.startswith("_")]
