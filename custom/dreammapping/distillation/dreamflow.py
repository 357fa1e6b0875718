"""DreamFlow, Lee, Sohn and Shin 2024 (ICLR, arXiv 2403.14966): VSD's residual along a predetermined course of t.

    L_lora = |e_lora(x_t', t', y, c) - eps'|^2
    R      = e_cfg(x_t, t, y) - e_lora(x_t, t, y, c)      t falls over the run instead of being drawn

There is no public code. What can be read in public, and what it leaves open:

Stated in the abstract and on the project page: t follows a predetermined schedule instead of being random; the image
is transported by an approximate probability flow between its own distribution and the teacher's (a Schroedinger
bridge); a fine-tuned copy of the denoiser gives the score of the current scene; each stage (radiance field, mesh, refiner
of large pictures) has a schedule of its own. Stated by its reviewers at ICLR: t decreases, with an inner loop of updates for
each t; the flow's formula is VSD's with the time-derivative of the noise level for a weight; the copy is a LoRA.
DreamMapping's Table 1: U = e_c - e_lora.

Assumed here: the copy, its camera, its lessons at random t' and its optimizer are VSD's; guidance is the usual 7.5;
t falls linearly from 980 to 20 over the whole run; the weight is the configuration's `weighting_strategy`; one stage.

The course of t is not this loss's own: dreamflow-gs.yaml sets `system.guidance.timesteps` to {type: anneal, ...}, whose
`hold` is the number of inner updates. With random t this loss is VSD.
"""

from __future__ import annotations

from .loss import register_loss
from .vsd import VSD


@register_loss("dreamflow")
class DreamFlow(VSD):
    """R = e_cfg - e_lora; options and cost as VSD (4 forwards, 1 backward)."""
