"""The network b_psi and its files.

    clean:  b(x_0, t) = alpha_bar x_0 + sig f(x_0, t)        noisy:  b(x_t, t) = a x_t + sig f(x_t, t)

f is a shallow U-Net that starts at zero; then b is the best denoiser of images distributed as N(0, I), averaged over
the noise (clean) or not (noisy). As t -> 0 b becomes the identity, and LMC-SDS becomes SDS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .card import WIDTHS, CorrectorCard, advice, read_card
from .weights import load_weights, save_part

WEIGHTS = "corrector.safetensors"
GROUPS = 8


class Corrector(nn.Module):
    """b_psi: estimates of the clean latents [B,C,h,w] that are blurred as the teacher's are.

    `reads` is clean (x_0) or noisy (x_t).
    """

    def __init__(self, network: nn.Module, reads: str) -> None:
        super().__init__()
        self.network, self.reads = network, reads

    def forward(self, clean: Tensor, noisy: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
        """clean, noisy [B,C,h,w], t [B], alpha_bar [B,1,1,1] -> [B,C,h,w] in their dtype. Uses one of the two."""
        seen, share = (clean, alpha_bar) if self.reads == "clean" else (noisy, alpha_bar.sqrt())
        own = next(self.network.parameters()).dtype
        change = self.network(seen.to(own), t, return_dict=False)[0].to(seen.dtype)
        return share * seen + (1 - alpha_bar).sqrt() * change


def build_corrector(
    latent_shape: tuple[int, int, int], reads: str = "clean", widths: Sequence[int] = WIDTHS, seed: int = 0
) -> Corrector:
    """An untrained corrector for latents (C, h, w), on the CPU in float32. Raises ConfigError for impossible sizes."""
    from diffusers import UNet2DModel

    channels, *sides = latent_shape
    halvings = len(widths) - 1
    if any(side % 2**halvings for side in sides):
        raise ConfigError(
            f"{len(widths)} widths halve the latents {halvings} times, which {sides[0]} x {sides[1]} does not allow"
        )
    if not widths or any(width < GROUPS or width % GROUPS for width in widths):
        raise ConfigError(f"the corrector's widths are {list(widths)}; each must be a multiple of {GROUPS}")
    with torch.random.fork_rng(devices=[]):  # layers initialize from the global generator; leave it as it was
        torch.manual_seed(seed)
        network = UNet2DModel(
            sample_size=tuple(sides),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            layers_per_block=1,
            norm_num_groups=GROUPS,
            resnet_time_scale_shift="scale_shift",  # after the normalization, which would take a mere shift out again
            add_attention=False,  # a blur is local
        )
    nn.init.zeros_(network.conv_out.weight)
    nn.init.zeros_(network.conv_out.bias)
    return Corrector(network, reads)


def save_corrector(corrector: Corrector, card: CorrectorCard, folder: Path) -> None:
    """Write weights (float16) and card."""
    save_part(corrector.network, card, folder / WEIGHTS)


def load_corrector(
    folder: str | Path,
    *,
    teacher: str,
    fingerprint: str,
    latent_shape: tuple[int, int, int],
    steps: int,
    any_weights: bool = False,
) -> Corrector:
    """The frozen corrector in `folder` for the teacher that the other arguments describe, float32 on the CPU.

    `any_weights` accepts one that was trained for other weights of the same latents and schedule. Raises ConfigError
    if it is missing, damaged or not that teacher's, and says how to train one.
    """
    folder = Path(folder)
    card = read_card(folder, CorrectorCard, "corrector", advice(teacher, str(folder)))
    problem = card.problem(latent_shape, steps, "" if any_weights else fingerprint)
    if problem:
        raise ConfigError(
            f"the corrector in {folder} was trained for {card.teacher}: {problem}. {advice(teacher)}; if the weights "
            "are the same in another format, system.guidance.loss.any_weights=true accepts it"
        )
    corrector = build_corrector(card.latent_shape, card.reads, card.widths)
    load_weights(corrector.network, folder / WEIGHTS, advice(teacher, str(folder)))
    return corrector.eval().requires_grad_(False)
