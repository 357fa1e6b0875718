"""Train U-Net and text encoder together on the latents of the pictures.

`python -m tabletop.train_text_to_image --data build/tabletop/train --vae build/tabletop/vae/vae --output build/tabletop/unet`

On several GPUs: `torchrun --nproc-per-node 2 -m tabletop.train_text_to_image ...`; `--batch` is the number of pictures of each process.
"""
from __future__ import annotations

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import processes
from .captions import captions, vocabulary
from .make_data import Pictures, load_pictures
from .models import PROMPT_LENGTH, noise_scheduler, text_encoder, unet
from .tokenizer import build_tokenizer, copy_tokenizer
from .train_vae import to_signed
from .training import Stage, add_loop_arguments, settings_from, training_device

CAPTIONS_EACH = 4
EMPTY_PROBABILITY = 0.15
"""Share of pictures whose caption is dropped, so that guidance has an unconditional prediction (Ho & Salimans 2022)."""


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """[N, PROMPT_LENGTH] int64."""
    return tokenizer(texts, padding="max_length", max_length=PROMPT_LENGTH, truncation=True, return_tensors="pt").input_ids


def caption_tokens(tokenizer: CLIPTokenizer, pictures: Pictures, seed: int) -> Tensor:
    """Several captions a picture, which name its view only if it is clear: [CAPTIONS_EACH, N, PROMPT_LENGTH] int16."""
    rng = random.Random(seed)
    return torch.stack([tokenize(tokenizer, captions(pictures.labels, pictures.clear_views, rng)).short() for _ in range(CAPTIONS_EACH)])


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Scaled posterior means and standard deviations of all pictures, half precision."""
    means, stds = [], []
    for part in images.split(batch):
        posterior = vae.encode(to_signed(part)).latent_dist
        means.append((posterior.mean * vae.config.scaling_factor).half())
        stds.append((posterior.std * vae.config.scaling_factor).half())
    return torch.cat(means), torch.cat(stds)


SNR_CAP = 5.0


def noise_weights(alpha_bar: Tensor) -> Tensor:
    """Weight of each timestep's squared error, min(SNR, 5) / SNR (Hang et al. 2023): less for the nearly clean ones, whose error is large
    and says little, so that shapes, which are decided at high noise, are learnt sooner."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=SNR_CAP) / snr


class Denoising(nn.Module):
    """Weighted mean squared error of the predicted noise."""

    def __init__(self, network, text):
        super().__init__()
        self.network, self.text = network, text

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        embeddings = self.text(tokens).last_hidden_state
        error = (self.network(noisy, t, embeddings).sample.float() - noise).square().mean(dim=(1, 2, 3))
        return (weight * error).mean()


def initial_tokenizer(start: Path | None, target: Path) -> CLIPTokenizer:
    """A tokenizer of today's words in `target`, or a copy of the one in `start`."""
    if start is None:
        processes.after_first(lambda: build_tokenizer(vocabulary(), target, length=PROMPT_LENGTH))
    else:
        processes.after_first(lambda: copy_tokenizer(start, target))
    return CLIPTokenizer.from_pretrained(target)


def initial_networks(start: Path | None, tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """New networks, or those of a teacher that was exported before."""
    if start is None:
        return unet(), text_encoder(tokenizer)
    network = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
    return network.train(), CLIPTextModel.from_pretrained(start / "text_encoder").float().train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, steps=14_000, learning_rate=1e-3, batch=768)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained autoencoder")
    parser.add_argument("--start-from", type=Path, help="a teacher folder whose U-Net and text encoder a new stage starts from")
    args = parser.parse_args()
    rank = processes.join()
    device = training_device()
    torch.manual_seed(args.seed + 1000 * rank)
    tokenizer = initial_tokenizer(args.start_from and args.start_from / "tokenizer", args.output / "tokenizer")
    pictures = load_pictures(args.data, device)
    vae = AutoencoderKL.from_pretrained(args.vae).to(device)
    with ThreadPoolExecutor(1) as pool:  # the CPU writes captions while the GPU encodes
        written = pool.submit(caption_tokens, tokenizer, pictures, args.seed)
        means, stds = encode_latents(vae, pictures.images)
        tokens = written.result().to(device)
    pictures.images = pictures.images[:0]
    empty = tokenize(tokenizer, [""]).to(device)
    network, text = initial_networks(args.start_from, tokenizer)
    network, text = network.to(device, memory_format=torch.channels_last), text.to(device)
    alpha_bar = noise_scheduler().alphas_cumprod.to(device)
    weights = noise_weights(alpha_bar)
    stage = Stage({"unet": network, "text": text}, settings_from(args, ema_decay=0.9995), args.output)
    objective = Denoising(network, text)
    if not args.no_compile:
        objective = torch.compile(objective)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(means), (args.batch,), device=device)
        clean = means[index] + stds[index] * torch.randn_like(means[index])
        clean = clean.float()
        words = tokens[torch.randint(CAPTIONS_EACH, (args.batch,), device=device), index].long()
        words = torch.where(torch.rand(args.batch, 1, device=device) < EMPTY_PROBABILITY, empty, words)
        t = torch.randint(len(alpha_bar), (args.batch,), device=device)
        noise = torch.randn_like(clean)
        keep = alpha_bar[t].view(-1, 1, 1, 1)
        noisy = (keep.sqrt() * clean + (1 - keep).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            return objective(noisy, t, words, noise, weights[t])

    stage.run(loss_of)
    if not processes.is_first():
        return
    stage.use_average()
    network.save_pretrained(args.output / "unet")
    text.save_pretrained(args.output / "text_encoder")


if __name__ == "__main__":
    main()
