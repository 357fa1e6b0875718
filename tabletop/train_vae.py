"""Train the autoencoder: `python -m tabletop.train_vae --data build/tabletop/train --output build/tabletop/vae`.

Squared error plus a little absolute error (stripes stay sharp) plus a very small KL term, as latent diffusion models do
(Rombach et al. 2022, appendix G); no adversarial part, because distillation wants a smooth encoder and a high PSNR.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .make_data import load_pictures
from .models import IMAGE_SIZE, LATENT_SIZE, autoencoder
from .training import Stage, add_loop_arguments, settings_from, training_device

KL_WEIGHT = 4e-7
CROP = 96
"""Side of the training crops. The network is convolutional, so crops teach it the same with more steps a second."""


def to_signed(images: Tensor) -> Tensor:
    """uint8 pictures to [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


class Reconstruction(nn.Module):
    """Encoder, posterior sample, decoder and loss in one graph, so that it compiles as one."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> Tensor:
        posterior = self.vae.encode(pictures).latent_dist
        latents = posterior.mean + posterior.std * noise
        output = self.vae.decode(latents).sample.float()
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1.0 - posterior.logvar.float()).sum(dim=(1, 2, 3)).mean()
        return F.mse_loss(output, pictures.float()) + 0.05 * F.l1_loss(output, pictures.float()) + KL_WEIGHT * kl


@torch.no_grad()
def reconstruct(vae, images: Tensor, batch: int = 250) -> Tensor:
    """uint8 pictures through encoder mean and decoder, back to uint8."""
    parts = []
    for part in images.split(batch):
        latents = vae.encode(to_signed(part)).latent_dist.mean
        parts.append(vae.decode(latents).sample.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB; uint8 [N, 3, H, W] both."""
    error = (images.float() - others.float()).square().mean(dim=(1, 2, 3)).clamp_min(1e-3)
    return 10 * torch.log10(255.0**2 / error)


@torch.no_grad()
def set_latent_scale(vae, images: Tensor) -> None:
    """Record the factor that brings drawn latents to unit standard deviation, as `scaling_factor` does in every Stable Diffusion.

    Drawn ones, not the posterior means: channels that the KL term has emptied are all noise, and the schedule counts them too.
    """
    latents = torch.cat([vae.encode(to_signed(part)).latent_dist.sample() for part in images.split(250)])
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, steps=20_000, learning_rate=1e-3, batch=96)
    parser.add_argument("--heldout", type=Path, help="pictures to measure the PSNR on")
    args = parser.parse_args()
    device = training_device()
    torch.manual_seed(args.seed)
    pictures = load_pictures(args.data, device).images
    vae = autoencoder().to(device, memory_format=torch.channels_last)
    settings = settings_from(args)
    stage = Stage({"vae": vae}, settings, args.output, weight_decay=1e-4)
    objective = Reconstruction(vae)
    if not args.no_compile:
        objective = torch.compile(objective)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(pictures), (args.batch,), device=device)
        y, x = torch.randint(pictures.shape[-1] - CROP + 1, (2,)).tolist()
        batch = to_signed(pictures[index, :, y : y + CROP, x : x + CROP]).contiguous(memory_format=torch.channels_last)
        size = CROP * LATENT_SIZE // IMAGE_SIZE
        noise = torch.randn(args.batch, vae.config.latent_channels, size, size, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            return objective(batch, noise)

    if stage.run(loss_of):
        stage.use_average()
        vae.eval()
        set_latent_scale(vae, pictures[:4000])
        vae.save_pretrained(args.output / "vae")
        if args.heldout:
            held = load_pictures(args.heldout, device, limit=2000).images
            values = psnr(held, reconstruct(vae, held))
            print(f"PSNR on {len(held)} unseen pictures: mean {values.mean():.2f} dB, 5th percentile {values.quantile(0.05):.2f} dB")


if __name__ == "__main__":
    main()
