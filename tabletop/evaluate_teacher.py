"""Measure a teacher: `python -m tabletop.evaluate_teacher --heldout build/tabletop/heldout --samples 512 --output build/tabletop/report`.

Samples prompts of unseen combinations with 50 steps of DPM-Solver++ at guidance scale 7.5 (the usual convention), asks the judge about each
sample, measures the judge on real renders and the autoencoder's PSNR, and writes a contact sheet and a JSON file.
"""
from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from .captions import plain_prompt
from .make_data import load_pictures
from .train_judge import accuracy, answer
from .train_text_to_image import tokenize
from .train_vae import psnr, reconstruct
from .training import default_device
from .world import VIEWS, sample_labels


@torch.no_grad()
def sample_images(folder: Path, prompts: list[str], *, steps: int, scale: float, seed: int, device: torch.device, batch: int = 256) -> Tensor:
    """uint8 pictures [N, 3, H, W] of the prompts."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device)
    network = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).to(device)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device)
    generator, pictures = torch.Generator().manual_seed(seed), []
    empty = text(tokenize(tokenizer, [""]).to(device)).last_hidden_state
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        words = text(tokenize(tokenizer, part).to(device)).last_hidden_state
        embeddings = torch.cat([words, empty.expand(len(part), -1, -1)])
        scheduler = DPMSolverMultistepScheduler.from_config(DDPMScheduler.from_pretrained(folder / "scheduler").config)
        scheduler.set_timesteps(steps, device=device)
        side = network.config.sample_size
        latents = torch.randn(len(part), network.config.in_channels, side, side, generator=generator).to(device)
        for t in scheduler.timesteps:
            conditional, unconditional = network(torch.cat([latents, latents]), t, embeddings).sample.chunk(2)
            latents = scheduler.step(unconditional + scale * (conditional - unconditional), t, latents).prev_sample
        for piece in latents.split(64):
            decoded = vae.decode(piece / vae.config.scaling_factor).sample
            pictures.append(decoded.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(pictures)


def contact_sheet(images: Tensor, columns: int) -> Image.Image:
    """uint8 [N, 3, H, W] in rows of `columns`."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.full((3, rows * height, columns * width), 255, dtype=torch.uint8)
    for i, image in enumerate(images.cpu()):
        y, x = divmod(i, columns)
        sheet[:, y * height : (y + 1) * height, x * width : (x + 1) * width] = image
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", type=Path, default=Path("load"), help="folder with embedded-teacher and embedded-judge")
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scale", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    device, folder = default_device(), args.load / "embedded-teacher"
    args.output.mkdir(parents=True, exist_ok=True)
    judge = CLIPModel.from_pretrained(args.load / "embedded-judge", dtype=torch.float32).to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.load / "embedded-judge")
    held = load_pictures(args.heldout, device, limit=4000)
    truth = {"family": held.labels.family, "color": held.labels.color, "pattern": held.labels.pattern, "view": held.clear_views}
    report: dict = {"judge_on_renders": accuracy(answer(judge, tokenizer, held.images, held.labels.family), truth)}
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device)
    report["psnr_db"] = psnr(held.images[:2000], reconstruct(vae, held.images[:2000])).mean().item()

    generator, rng = torch.Generator().manual_seed(args.seed), random.Random(args.seed)
    labels = sample_labels(args.samples, generator, split="heldout")
    views = torch.tensor([rng.randrange(len(VIEWS)) for _ in range(args.samples)])
    rows = zip(labels.family.tolist(), labels.color.tolist(), labels.pattern.tolist(), views.tolist())
    prompts = [f"{plain_prompt(f, c, p)}, {VIEWS[v]} view" for f, c, p, v in rows]
    images = sample_images(folder, prompts, steps=args.steps, scale=args.scale, seed=args.seed, device=device)
    truth = {"family": labels.family, "color": labels.color, "pattern": labels.pattern, "view": views}
    choices = answer(judge, tokenizer, images, labels.family)
    report["samples"] = {"count": args.samples, "steps": args.steps, "scale": args.scale, **accuracy(choices, truth)}
    wrong = [
        {"prompt": prompts[i], **{name: int(choices[name][i]) for name in truth if truth[name][i] >= 0 and choices[name][i] != truth[name][i]}}
        for i in range(len(prompts)) if any(truth[name][i] >= 0 and choices[name][i] != truth[name][i] for name in truth)
    ]
    (args.output / "teacher.json").write_text(json.dumps({**report, "wrong": wrong}, indent=1))
    contact_sheet(images[:128], 16).save(args.output / "samples.png")
    (args.output / "samples.txt").write_text("\n".join(prompts[:128]))
    print(json.dumps(report, indent=1), flush=True)


if __name__ == "__main__":
    main()
