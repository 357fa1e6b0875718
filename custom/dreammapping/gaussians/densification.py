"""Adding, moving and removing Gaussians during a run, with a state that survives a checkpoint bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..processes import greatest_over_processes, process_count, process_rank, require_alike, sum_over_processes
from .growth import grow_and_prune, reset_opacity
from .mcmc import add_position_noise, relocate_and_add
from .model import GaussianModel
from .optimizer import OptimizerView, optimizer_views
from .settings import DensificationSettings

GRADIENT_KEY = "means2d"


class Densification(nn.Module):
    """One strategy with its statistics and its random numbers, both part of the state dict.

    In each step::

        densification.before_backward(step, info)             # info: what the rasterizer returned
        loss.backward()
        optimizer.step()
        densification.after_step(step, info, model, optimizer)
    """

    def __init__(self, settings: DensificationSettings, count: int, seed: int = 0) -> None:
        """`count` Gaussians; `seed` of the generator that every draw comes from."""
        super().__init__()
        self.settings = settings
        self.generator = torch.Generator().manual_seed(seed)
        # Since the last event, for each Gaussian: sum of gradient norms, number of views that saw it, largest radius.
        self.register_buffer("grad2d", torch.zeros(count))
        self.register_buffer("count", torch.zeros(count))
        self.register_buffer("radii", torch.zeros(count))

    def before_backward(self, step: int, info: Mapping[str, Any]) -> None:
        """Ask autograd to keep the screen-space gradients, if this step's are wanted."""
        if self._watches(step) and info[GRADIENT_KEY].requires_grad:
            info[GRADIENT_KEY].retain_grad()

    def after_step(self, step: int, info: Mapping[str, Any], model: GaussianModel, optimizer: Any) -> bool:
        """Update the statistics and do what is due after `step` (counted from 0), once the optimizer has stepped.

        Args:
            info: of this step's rasterization, after backward. Not read by `mcmc` and `none`.
            model: the Gaussians that were rendered. Their parameters may be replaced by others with another N.
            optimizer: the one Adam with `parameter_groups`; or Lightning's wrapper round it.

        Returns:
            Whether the list of Gaussians may have changed.
        """
        if self.settings.type == "none":
            return False
        if self._watches(step):
            self._collect(info)
        changed = False
        views = optimizer_views(optimizer)
        if self.settings.refines_at(step):
            self._refine(step, model, views)
            require_alike(model.params.values(), f"step {step}: the list of Gaussians")
            changed = True
        if self.settings.resets_at(step):
            reset_opacity(model, views, self.settings.reset_opacity)
        if self.settings.type == "mcmc":
            rate = views["means"].param_groups[0]["lr"]
            add_position_noise(model, rate * self.settings.noise_lr, self.generator)
        return changed

    @property
    def mean_gradient(self) -> Tensor:
        """[N] screen-space gradient since the last event, averaged over the views that saw each Gaussian."""
        return self.grad2d / self.count.clamp_min(1.0)

    def resize(self, count: int) -> None:
        """Start empty statistics for `count` Gaussians."""
        for name in ("grad2d", "count", "radii"):
            setattr(self, name, getattr(self, name).new_zeros(count))

    # ------------------------------------------------------------------ inside

    def _watches(self, step: int) -> bool:
        return self.settings.type == "default" and step < self.settings.refine_stop_iter

    @torch.no_grad()
    def _collect(self, info: Mapping[str, Any]) -> None:
        gradient, radii = info[GRADIENT_KEY].grad, info["radii"]
        norms, seen, share = (torch.zeros_like(self.grad2d) for _ in range(3))
        if gradient is not None:  # else nothing of the loss reached the image
            # What is minimized is the average of the processes' losses.
            weight = gradient.shape[0] if self.settings.loss_over_views == "mean" else 1 / process_count()
            in_pixels = (info["width"] / 2.0 * weight, info["height"] / 2.0 * weight)
            gradient, radii = self._watched(gradient), self._watched(radii)
            visible = (radii > 0).all(-1)  # [C, N]; what the rasterizer says of a culled Gaussian has no meaning
            # By plain numbers: a tensor of them would have to come from the host, which waits for the device.
            scaled = torch.stack([gradient[..., i] * unit for i, unit in enumerate(in_pixels)], -1)
            norms += torch.where(visible, scaled.norm(dim=-1), 0.0).sum(0)
            seen += visible.sum(0)
            if self.settings.prune_scale2d is not None and len(radii):
                share += radii.amax(-1).amax(0) / float(max(info["width"], info["height"]))
        # At once, not at the event: a checkpoint holds the same statistics whichever process writes it.
        sum_over_processes([norms, seen])
        self.grad2d += norms
        self.count += seen
        if self.settings.prune_scale2d is not None:
            greatest_over_processes(share)
            torch.maximum(self.radii, share, out=self.radii)

    def _watched(self, of_views: Tensor) -> Tensor:
        """Of [C, ...] the views that count: all, or the last of the whole batch, which the last process has."""
        if self.settings.views != "last":
            return of_views
        return of_views[-1:] if process_rank() == process_count() - 1 else of_views[:0]

    def _refine(self, step: int, model: GaussianModel, views: Mapping[str, OptimizerView]) -> None:
        if self.settings.type == "mcmc":
            relocate_and_add(model, views, self.settings, step, self.generator)
        else:
            grow_and_prune(model, views, self.mean_gradient, self.radii, self.settings, step, self.generator)
        self.resize(model.count)

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())

    def prepare_for_state_dict(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Resize to the number of Gaussians in `state`, whose keys here start with `prefix`."""
        saved = state.get(f"{prefix}grad2d")
        if saved is not None and saved.shape != self.grad2d.shape:
            self.resize(saved.shape[0])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.prepare_for_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
