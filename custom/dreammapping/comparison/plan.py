"""What is compared: a YAML file of methods x representations x prompts x seeds, and the runs it asks for.

A method is a loss with some overrides; a representation is pictures (2d), Gaussians (gs) or a radiance field (nerf). Files in plans/ are examples;
docs/comparison.md explains every key.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import yaml
from omegaconf import OmegaConf

from ..errors import ConfigError, suggest
from ..evaluation.protocol import load_protocol
from ..settings import parse_settings
from ..system.prompts import read_prompts
from .runner import Job

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = Path("custom") / "dreammapping" / "configs"
"""Below ROOT, where launch.py runs."""
PLANS = Path(__file__).parent / "plans"
REPRESENTATIONS = {"2d": "pictures", "gs": "Gaussians", "nerf": "radiance field"}
AXES = ("seed", "representation", "method", "prompt")
CARRIED = ("loss", "guidance_scale", "cfg_convention", "anchor")
"""What a loss brings into a radiance field's config; timesteps and weights are the field's own."""


@dataclass(frozen=True)
class Method:
    """One line of the tables."""

    loss: str
    overrides: list[str] = field(default_factory=list)
    of: dict[str, list[str]] = field(default_factory=dict)
    """Further overrides by representation."""


@dataclass(frozen=True)
class Variant:
    """Something that every method is run with, such as another learning rate."""

    overrides: list[str] = field(default_factory=list)
    of: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptFile:
    """Prompts from a file, one a line, beside the plan."""

    file: str
    first: int = 0
    count: Optional[int] = None


@dataclass(frozen=True)
class Plan:
    """A comparison."""

    title: str
    methods: list[str] | dict[str, Method] | Literal["all"]
    """Names of losses; or lines of the tables by name; or all losses that have a config for each representation."""
    representations: list[Literal["2d", "gs", "nerf"]]
    prompts: list[str] | PromptFile | None = None
    """None: the protocol's."""
    seeds: Optional[list[int]] = None
    """None: the protocol's."""
    about: str = ""
    """What a reader of the report must know."""
    base: str = ""
    """The method that others are compared with; default: the first."""
    preset: Literal["paper", "embedded", "auto"] = "embedded"
    protocol: str = "embedded"
    """How the results are looked at: a file of evaluation/protocols, or a path."""
    overrides: list[str] = field(default_factory=list)
    """Of every run."""
    of: dict[str, list[str]] = field(default_factory=dict)
    """Further overrides by representation."""
    variants: dict[str, Variant] = field(default_factory=dict)
    """Every method with each of these; none: as it is."""
    choices: Optional[str] = None
    """A file beside the plan, written by `--choose`: overrides by representation and loss, of each loss's best variant."""
    order: list[Literal["seed", "representation", "method", "prompt"]] = field(default_factory=lambda: list(AXES))
    """What changes slowest comes first; what is first in a list is run first."""
    prompts_per_run: int = 1
    """Pictures only: so many prompts share a run, and with it what a loss trains besides the pictures."""
    particles: int = 1
    """Pictures only: of each prompt."""

    def __post_init__(self) -> None:
        if sorted(self.order) != sorted(AXES):
            raise ConfigError(f"order is {self.order}; it must have each of {', '.join(AXES)} once")
        for name in ("seeds", "representations", "prompts", "methods"):
            if getattr(self, name) is not None and not getattr(self, name):
                raise ConfigError(f"{name} is empty; there would be nothing to run")
        if self.prompts_per_run < 1 or self.particles < 1:
            raise ConfigError("prompts_per_run and particles must be at least 1")
        if repeated := {seed for seed in self.seeds or [] if self.seeds.count(seed) > 1}:
            raise ConfigError(f"seeds has {', '.join(map(str, repeated))} twice; every run is made once")


@dataclass(frozen=True)
class Run:
    """One run of a plan."""

    representation: str
    method: str
    prompts: tuple[str, ...]
    seed: int
    job: Job


def load_plan(path: str | Path) -> Plan:
    """A plan from its file, or by its name in plans/. Prompts, methods and choices are looked up. Raises ConfigError."""
    path = _plan_file(path)
    content = _read_yaml(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds no plan; it must be a block of keys, see docs/comparison.md")
    plan = parse_settings(Plan, content, path.name)
    protocol = load_protocol(plan.protocol)
    prompts = _prompts(list(protocol.prompts) if plan.prompts is None else plan.prompts, path)
    seeds = list(protocol.seeds) if plan.seeds is None else plan.seeds
    methods = _with_choices(_methods(plan, path), plan, path)
    methods = _with_variants(methods, plan)
    base = plan.base or next(iter(methods))
    if base not in methods:
        raise ConfigError(f"{path.name}.base is {base!r}, which is no method; {suggest(base, methods)}")
    found = {"prompts": prompts, "seeds": seeds, "methods": methods, "base": base, "variants": {}, "choices": None}
    return parse_settings(Plan, {**plan.__dict__, **found}, path.name)


def plan_name(path: str | Path) -> str:
    """What `--plan` calls it: the name of one in plans/, else the path."""
    file = _plan_file(path)
    return file.stem if file.resolve().parent == PLANS.resolve() else str(path)


def _plan_file(path: str | Path) -> Path:
    path = Path(path)
    ours = PLANS / f"{path.name}.yaml"
    return ours if not path.is_file() and ours.is_file() else path


def runs(plan: Plan) -> list[Run]:
    """All runs of a loaded plan, the most important first. Raises ConfigError for a loss without the config it needs."""
    lists = {"seed": plan.seeds, "representation": plan.representations, "method": list(plan.methods)}
    found = []
    groups = {kind: _groups(plan.prompts, plan.prompts_per_run if kind == "2d" else 1) for kind in plan.representations}
    lists["prompt"] = range(max(map(len, groups.values())))
    for values in itertools.product(*(lists[axis] for axis in plan.order)):
        chosen = dict(zip(plan.order, values))
        kind, method, seed, number = (chosen[axis] for axis in ("representation", "method", "seed", "prompt"))
        if number < len(groups[kind]):
            found.append(Run(kind, method, groups[kind][number], seed, _job(plan, kind, method, groups[kind][number], number, seed)))
    if len(names := {run.job.name for run in found}) < len(found):
        raise ConfigError(f"{len(found) - len(names)} runs have the name of another; give methods names that differ in letters and digits")
    return found


def losses_with_config(kind: str) -> list[str]:
    """Losses that can be run, by their configs: vdm, sds and vsd first, the others by name."""
    suffix = "-gs" if kind == "nerf" else f"-{kind}"
    names = [path.stem.removesuffix(suffix) for path in sorted((ROOT / CONFIGS).glob(f"*{suffix}.yaml"))]
    first = [name for name in ("vdm", "sds", "vsd") if name in names]
    return [*first, *(name for name in names if name not in first)]


def slug(text: str) -> str:
    """A part of a file's name."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_") or "x"


# ---- reading ----


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        known = ", ".join(sorted(each.stem for each in PLANS.glob("*.yaml")))
        raise ConfigError(f"cannot read {path}: {problem}. Plans that come with this repository: {known}") from problem
    except yaml.YAMLError as problem:
        raise ConfigError(f"{path} is not YAML: {problem}") from problem


def _prompts(given: list[str] | PromptFile, path: Path) -> list[str]:
    if not isinstance(given, PromptFile):
        prompts = read_prompts(given)
    else:
        prompts = read_prompts(str(path.parent / given.file))[given.first :][: given.count]
        if not prompts or (given.count and len(prompts) < given.count):
            raise ConfigError(
                f"{path.name}.prompts asks for {given.count or 'all'} prompts of {given.file} from {given.first}; there are {len(prompts)}"
            )
    if repeated := [prompt for prompt in dict.fromkeys(prompts) if prompts.count(prompt) > 1]:
        raise ConfigError(f"{path.name}.prompts has {repeated[0]!r} twice; every run is made once")
    return prompts


def _methods(plan: Plan, path: Path) -> dict[str, Method]:
    able = [loss for loss in losses_with_config(plan.representations[0]) if all(loss in losses_with_config(r) for r in plan.representations)]
    names = able if plan.methods == "all" else plan.methods
    methods = names if isinstance(names, dict) else {name: Method(name) for name in names}
    for name, method in methods.items():
        if method.loss not in able:
            raise ConfigError(
                f"{path.name}.methods.{name} has the loss {method.loss!r}, which has no config for {', '.join(plan.representations)}; "
                f"{suggest(method.loss, able)}"
            )
    return methods


def _with_choices(methods: dict[str, Method], plan: Plan, path: Path) -> dict[str, Method]:
    """The chosen overrides come before the method's own."""
    if plan.choices is None:
        return methods
    choices = parse_settings(_Choices, {"of": _read_yaml(path.parent / plan.choices)}, plan.choices).of
    found = {}
    for name, method in methods.items():
        own = {kind: [*choices.get(kind, {}).get(method.loss, []), *method.overrides, *method.of.get(kind, [])] for kind in plan.representations}
        found[name] = Method(method.loss, [], own)
    return found


@dataclass(frozen=True)
class _Choices:
    of: dict[str, dict[str, list[str]]]


def _with_variants(methods: dict[str, Method], plan: Plan) -> dict[str, Method]:
    if not plan.variants:
        return methods
    return {
        f"{name}, {label}": Method(
            method.loss,
            [*method.overrides, *variant.overrides],
            {kind: [*method.of.get(kind, []), *variant.of.get(kind, [])] for kind in {*method.of, *variant.of}},
        )
        for name, method in methods.items()
        for label, variant in plan.variants.items()
    }


# ---- runs ----


def _groups(prompts: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def _job(plan: Plan, kind: str, name: str, prompts: tuple[str, ...], number: int, seed: int) -> Job:
    method = plan.methods[name]
    config, brought = _config(kind, method.loss, plan.preset)
    if kind == "2d":
        asked = [f"system.prompts={json.dumps(prompts)}", f"system.geometry.particles={plan.particles}", "data.batch_size=null"]
    else:
        asked = [f"system.prompt_processor.prompt={prompts[0]}"]
    arguments = (
        "--config", config.as_posix(), "--train", "--preset", plan.preset, f"seed={seed}", *asked,
        "trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "trainer.num_sanity_val_steps=0",
        "trainer.val_check_interval=${trainer.max_steps}", "system.video_fps=null",
        *brought, *plan.overrides, *plan.of.get(kind, []), *method.overrides, *method.of.get(kind, []),
    )  # fmt: skip
    place = f"{number:03d}" if kind == "2d" and plan.prompts_per_run > 1 else slug(prompts[0])[:80]
    about = {"representation": kind, "method": name, "loss": method.loss, "prompts": list(prompts), "particles": plan.particles, "run_seed": seed}
    return Job(f"{kind}.{slug(name)}.{place}.{seed}", arguments, about)


def _config(kind: str, loss: str, preset: str) -> tuple[Path, list[str]]:
    """The config of a loss, and what else it needs: other losses than VDM bring their own guidance into the radiance field's config."""
    if kind != "nerf":
        return CONFIGS / f"{loss}-{kind}.yaml", []
    files = [CONFIGS / f"{loss}-gs.yaml", CONFIGS / "presets" / preset / f"{loss}-gs.yaml"]
    theirs = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.load(ROOT / f) for f in files if (ROOT / f).is_file())), resolve=False)["system"]
    ours = OmegaConf.to_container(OmegaConf.load(ROOT / CONFIGS / "vdm-nerf.yaml"), resolve=False)["system"]
    brought = [] if loss == "vdm" else [f"system.guidance.{key}={json.dumps(theirs['guidance'][key])}" for key in CARRIED]
    if theirs["guidance"]["timesteps"]["type"] == "consistency":  # makes the pairs that the loss needs
        brought.append(f"system.guidance.timesteps={json.dumps(theirs['guidance']['timesteps'])}")
    negative = theirs["prompt_processor"].get("negative_prompt", "")
    if negative != ours["prompt_processor"].get("negative_prompt", ""):
        brought.append(f"system.prompt_processor.negative_prompt={negative}")
    return CONFIGS / "vdm-nerf.yaml", brought
