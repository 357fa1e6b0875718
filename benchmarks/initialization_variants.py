"""What benchmarks/initialization.py compares: starts of the Gaussians, each as overrides of launch.py over the embedded preset.

A variant is one entry of VARIANTS; where the losses need different values they stand in `of_loss`. What every run has in common,
which pictures are taken when, is in `arguments`.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dreammapping.comparison.runner import Job
from embedded_quality import PROMPTS, prompt_of

LOSSES = ("vdm", "sds")
FIRST = ("sphere", "shap-e")
"""The two that everything is compared with; they run first."""
CONFIGS = "custom/dreammapping/configs"
STEPS = 500
"""What a start from nothing takes; twice the embedded preset's, whose whole course goes by it."""
LOOK_VIEWS, FINAL_VIEWS = 8, 24
"""Sides from which the object is looked at on the way, and at the end (every 15 degrees)."""
SIZE = 128
"""Pixels of these pictures; the judge's own."""


@dataclass(frozen=True)
class Variant:
    """One start, or one way to help a start along."""

    overrides: tuple[str, ...] = ()
    of_loss: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Further overrides by loss."""
    steps: int = STEPS


def shap_e(*further: str, radius: float = 0.55, steps: int = STEPS) -> Variant:
    """A start from the embedded Shap-E."""
    start = (
        "system.geometry.init.type=shap-e", "system.geometry.init.prompt=${system.prompt_processor.prompt}", f"system.geometry.init.radius={radius}",
        "system.geometry.init.shap_e={model: load/embedded-shap-e, steps: 8, guidance_scale: 3.0, grid_size: 64}",
    )  # fmt: skip
    return Variant((*start, *further), steps=steps)


def sphere(*further: str, radius: float = 0.45, **settings: Any) -> Variant:
    """A start from a sphere."""
    return Variant(("system.geometry.init.type=sphere", f"system.geometry.init.radius={radius}", *further), **settings)


VARIANTS: dict[str, Variant] = {
    "sphere": sphere(),
    "shap-e": shap_e(),
    "shap-e-half": shap_e(steps=STEPS // 2),
    "shap-e-small": shap_e(radius=0.45),  # as the sphere; the world's objects are larger
    "shap-e-opaque": shap_e("system.geometry.opacity_init=0.5"),
    # ---- the teacher is told more clearly which side it sees ----
    "perp-neg": sphere("system.prompt_processor.use_perp_neg=true"),
    # ---- another sphere ----
    "opaque": sphere("system.geometry.opacity_init=0.4"),
    "large": sphere(radius=0.6),
    "ball": sphere("system.geometry.init.distribution=ball", radius=0.6),
    "few": sphere("system.geometry.init.num_points=1000"),
    "many": sphere("system.geometry.init.num_points=10000"),
    "random-colors": sphere("system.geometry.init.color=random"),
    # ---- another course ----
    "noise-first": sphere(
        "system.guidance.timesteps.min_step_percent=[0, 0.6, 0.02, 200]", "system.guidance.timesteps.max_step_percent=[100, 0.98, 0.5, 450]",
    ),
    "anneal": sphere("system.guidance.timesteps={type: anneal, shared: false, start: 900, end: 200, anneal_steps: 450, width: 80}"),
    "strong-first": sphere(of_loss={
        "vdm": ("system.guidance.guidance_scale=[0, 20.0, 7.5, 200]",), "sds": ("system.guidance.guidance_scale=[0, 200.0, 100.0, 200]",),
    }),
    "late-densification": sphere("system.geometry.densification.refine_start_iter=200"),
    # ---- other cameras ----
    "progressive": sphere("data.progressive_until=150"),
    "coarse-first": sphere("data.height=[64, 128]", "data.width=[64, 128]", "data.batch_size=[8, 4]", "data.resolution_milestones=[150]"),
    "far": sphere("data.camera_distance_range=[2.2, 2.6]", "data.fovy_range=[42, 45]"),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    variant: str
    loss: str
    prompt: int
    """Index into PROMPTS."""
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.variant}.{self.loss}.{prompt_of(*PROMPTS[self.prompt]).replace(' ', '_')}.{self.seed}"

    def job(self, every: int, extra: tuple[str, ...] = ()) -> Job:
        """What the runner is told. `every`: steps between two looks; `extra` wins over all else."""
        variant = VARIANTS[self.variant]
        arguments = (
            "--config", f"{CONFIGS}/{self.loss}-gs.yaml", "--train", "--preset", "embedded",
            f"seed={self.seed}",
            f"system.prompt_processor.prompt={prompt_of(*PROMPTS[self.prompt])}",
            f"data.eval_height={SIZE}", f"data.eval_width={SIZE}", f"data.n_val_views={LOOK_VIEWS}", f"data.n_test_views={FINAL_VIEWS + 1}",
            f"trainer.max_steps={variant.steps}", f"trainer.val_check_interval={every}",
            "trainer.num_sanity_val_steps=-1",  # a look at the start
            "trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "system.video_fps=null",
            *variant.overrides, *variant.of_loss.get(self.loss, ()), *extra,
        )  # fmt: skip
        return Job(self.name, arguments, dict(self.__dict__))


def cells(variants: list[str], losses: list[str], prompts: list[int], seeds: list[int]) -> list[Cell]:
    """All runs, the most important first: seed by seed, in each the variants of FIRST before the others."""
    ordered = sorted(variants, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return [Cell(v, loss, p, s) for s in seeds for v in ordered for loss in losses for p in prompts]
