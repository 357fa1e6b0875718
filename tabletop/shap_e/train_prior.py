"""Train the prior and its text encoder together on the latents of the objects.

`python -m tabletop.shap_e.train_prior --data build/tabletop/objects --latents build/tabletop/shap-e-latents --output build/tabletop/shap-e-prior`
"""
from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ..captions import captions
from ..train_text_to_image import initial_tokenizer, tokenize
from ..training import Stage, add_loop_arguments, settings_from, training_device
from .models import ROW_WIDTH, TEXT_WIDTH, ObjectEncoder, prior, scheduler, text_encoder
from .objects import load_objects
from .train_latents import encode

CAPTIONS_EACH = 4
EMPTY_PROBABILITY = 0.12
"""Share of objects whose text is dropped, for guidance: Shap-E's unconditional text embedding is zero."""
MOST_WEIGHT = 5.0


def object_tokens(tokenizer: CLIPTokenizer, objects, seed: int) -> Tensor:
    """Several captions an object, none of which names a view: [CAPTIONS_EACH, N, PROMPT_LENGTH] int16."""
    rng = random.Random(seed)
    unclear = torch.full((len(objects),), -1)
    return torch.stack([tokenize(tokenizer, captions(objects.labels, unclear, rng)).short() for _ in range(CAPTIONS_EACH)])


class Denoising(nn.Module):
    """Weighted squared error of the clean latent that the prior predicts from a noisy one."""

    def __init__(self, network, text):
        super().__init__()
        self.network, self.text = network, text

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor, keep_text: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
        embedding = self.text(tokens).text_embeds.float()
        embedding = keep_text * TEXT_WIDTH**0.5 * nn.functional.normalize(embedding, dim=-1)  # as ShapEPipeline scales it
        said = self.network(noisy, t, proj_embedding=embedding).predicted_image_embedding[..., :ROW_WIDTH]
        return (weight * (said.float() - clean).square().mean(dim=(1, 2))).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, steps=30_000, learning_rate=6e-4, batch=512)
    parser.add_argument("--latents", type=Path, required=True, help="folder of train_latents")
    args = parser.parse_args()
    device = training_device()
    torch.manual_seed(args.seed)
    tokenizer = initial_tokenizer(None, args.output / "tokenizer")
    objects = load_objects(args.data / "train")
    encoder = ObjectEncoder().to(device)
    encoder.load_state_dict(load_file(args.latents / "encoder.safetensors"))
    latents = encode(encoder, objects)
    tokens = object_tokens(tokenizer, objects, args.seed).to(device)
    network, text = prior().to(device), text_encoder(tokenizer).to(device)
    alpha_bar = scheduler().alphas_cumprod.to(device)
    # More than 1 where little noise is left, so that details are learnt too; Hang et al. 2023 cap it at 5.
    weights = (alpha_bar / (1 - alpha_bar)).clamp(1.0, MOST_WEIGHT)
    stage = Stage({"prior": network, "text": text}, settings_from(args, ema_decay=0.9995), args.output)
    objective = Denoising(network, text)
    if not args.no_compile:
        objective = torch.compile(objective)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(latents), (args.batch,), device=device)
        clean = latents[index].float()
        words = tokens[torch.randint(CAPTIONS_EACH, (args.batch,), device=device), index].long()
        keep_text = (torch.rand(args.batch, 1, device=device) >= EMPTY_PROBABILITY).float()
        t = torch.randint(len(alpha_bar), (args.batch,), device=device)
        keep = alpha_bar[t].view(-1, 1, 1)
        noisy = keep.sqrt() * clean + (1 - keep).sqrt() * torch.randn_like(clean)
        with torch.autocast(device.type, torch.bfloat16):
            return objective(noisy, t, words, keep_text, clean, weights[t])

    if not stage.run(loss_of):
        return
    stage.use_average()
    network.save_pretrained(args.output / "prior")
    text.save_pretrained(args.output / "text_encoder")


if __name__ == "__main__":
    main()
