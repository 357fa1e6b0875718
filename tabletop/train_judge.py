"""Train the judge, a small CLIP on pictures the teacher never saw.

`python -m tabletop.train_judge --data build/tabletop/judge --output build/tabletop/judge-run`

Two objectives on one pair of towers: whole captions against pictures (equal captions count as equal, so there are no false
negatives), and questions about one attribute with the others given ("a red mug" or "a blue mug"?), which is how it is used.
Pictures are blurred, shifted, tinted and covered in noise at random: a judge of 3D renders must not depend on crisp edges.
"""
from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from .captions import plain_prompt
from .make_data import load_pictures
from .models import judge
from .train_text_to_image import initial_tokenizer, tokenize
from .train_vae import to_signed
from .training import Stage, add_loop_arguments, settings_from, training_device
from .world import COLORS, FAMILIES, PATTERNS, VIEWS

WRAPPERS = ("{}", "a photo of {}", "a DSLR photo of {}", "a 3d render of {}")


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def questions() -> dict[str, list[list[str]]]:
    """For each attribute and each family, the competing texts: {"color": [[text of each color] of each family], ...}."""
    return {
        "family": [[with_article(f) for f in FAMILIES]],
        "color": [[with_article(f"{c} {f}") for c in COLORS] for f in FAMILIES],
        "pattern": [[with_article(f"{p} {f}") for p in PATTERNS] for f in FAMILIES],
        "view": [[f"{with_article(f)}, {v} view" for v in VIEWS] for f in FAMILIES],
    }


def augment(pictures: Tensor) -> Tensor:
    """Random mirroring, shift, zoom, blur, tint and noise; [B, 3, H, W] in [-1, 1], each picture differently."""
    count, device = len(pictures), pictures.device
    zoom = 1.0 + 0.15 * (2 * torch.rand(count, device=device) - 1)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, 0, 0] *= torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)  # no label tells left from right
    theta[:, :, 2] = 0.1 * (2 * torch.rand(count, 2, device=device) - 1)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    low = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2, mode="bilinear", align_corners=False)
    lower = F.interpolate(F.avg_pool2d(moved, 3, stride=2, padding=1), scale_factor=2, mode="bilinear", align_corners=False)
    pick = torch.rand(count, 1, 1, 1, device=device)
    moved = torch.where(pick < 0.25, low, torch.where(pick < 0.4, lower, moved))
    gain = 1.0 + 0.12 * (2 * torch.rand(count, 3, 1, 1, device=device) - 1)
    shift = 0.1 * (2 * torch.rand(count, 1, 1, 1, device=device) - 1)
    noise = 0.12 * torch.rand(count, 1, 1, 1, device=device) * torch.randn_like(moved)
    return (moved * gain + shift + noise).clamp(-1, 1)


class Judgement(nn.Module):
    """The loss of one batch. `labels`: family, color (-1: none), pattern, view, each [B]."""

    def __init__(self, model, sizes: dict[str, tuple[int, int]]):
        super().__init__()
        self.model, self.sizes = model, sizes

    def embed_texts(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.model.text_projection(self.model.text_model(tokens).pooler_output).float(), dim=-1)

    def forward(self, pictures: Tensor, captions: Tensor, same: Tensor, tables: Tensor, labels: dict[str, Tensor]) -> Tensor:
        image = F.normalize(self.model.visual_projection(self.model.vision_model(pictures).pooler_output).float(), dim=-1)
        texts = self.embed_texts(torch.cat([captions, tables]))
        scale = self.model.logit_scale.float().exp().clamp(max=100.0)
        logits = scale * image @ texts[: len(captions)].T
        target = same / same.sum(dim=1, keepdim=True)
        loss = 0.25 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        first = len(captions)
        for name, (families, choices) in self.sizes.items():
            table = texts[first : first + families * choices].view(families, choices, -1)
            first += families * choices
            rows = table[labels["family"]] if families > 1 else table.expand(len(image), -1, -1)
            answers = scale * torch.einsum("bd,bcd->bc", image, rows)
            loss = loss + F.cross_entropy(answers, labels[name], ignore_index=-1)
        return loss


@torch.no_grad()
def answer(model, tokenizer, images: Tensor, families: Tensor) -> dict[str, Tensor]:
    """The judge's choice for each attribute of uint8 pictures, the family being given for all but itself."""
    device = images.device
    image = torch.cat([
        F.normalize(model.visual_projection(model.vision_model(to_signed(part)).pooler_output), dim=-1) for part in images.split(500)
    ])
    choices = {}
    for name, rows in questions().items():
        flat = tokenize(tokenizer, [text for row in rows for text in row]).to(device)
        texts = F.normalize(model.text_projection(model.text_model(flat).pooler_output), dim=-1)
        table = texts.view(len(rows), len(rows[0]), -1)
        picked = table[families.to(device)] if len(rows) > 1 else table.expand(len(image), -1, -1)
        choices[name] = torch.einsum("nd,ncd->nc", image, picked).argmax(dim=1).cpu()
    return choices


def accuracy(choices: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Share of right answers per attribute; pictures without the attribute (-1) are left out."""
    result = {}
    for name, truth in labels.items():
        known = truth >= 0
        result[name] = (choices[name][known] == truth[known]).float().mean().item()
    return result


def initial_judge(start: Path | None, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A new judge, or one that was exported before."""
    return judge(tokenizer) if start is None else CLIPModel.from_pretrained(start).float().train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_loop_arguments(parser, steps=4000, learning_rate=1e-3, batch=768)
    parser.add_argument("--heldout", type=Path, help="pictures to measure the judge on")
    parser.add_argument("--start-from", type=Path, help="folder of a judge whose weights a new stage starts from")
    args = parser.parse_args()
    device = training_device()
    torch.manual_seed(args.seed)
    tokenizer = initial_tokenizer(args.start_from, args.output / "judge")
    pictures = load_pictures(args.data, device)
    labels = {"family": pictures.labels.family, "color": pictures.labels.color, "pattern": pictures.labels.pattern, "view": pictures.views}
    labels = {name: values.to(device) for name, values in labels.items()}
    texts = [plain_prompt(f, c, p) for f, c, p in zip(*(labels[k].tolist() for k in ("family", "color", "pattern")))]
    kinds = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    kind = torch.tensor([kinds[text] for text in texts], device=device)
    wrapped = torch.stack([tokenize(tokenizer, [w.format(t) for t in kinds]) for w in WRAPPERS]).to(device)
    asked = questions()
    flat = [text for rows in asked.values() for row in rows for text in row]
    tables = torch.stack([tokenize(tokenizer, [w.format(t) for t in flat]) for w in WRAPPERS]).to(device)
    model = initial_judge(args.start_from, tokenizer).to(device)
    stage = Stage({"judge": model}, settings_from(args), args.output, weight_decay=0.05)
    objective = Judgement(model, {name: (len(rows), len(rows[0])) for name, rows in asked.items()})
    if not args.no_compile:
        objective = torch.compile(objective)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(kind), (args.batch,), device=device)
        batch = augment(to_signed(pictures.images[index]))
        wording = torch.randint(len(WRAPPERS), (2,)).tolist()
        same = (kind[index, None] == kind[None, index]).float()
        own = {name: values[index] for name, values in labels.items()}
        with torch.autocast(device.type, torch.bfloat16):
            return objective(batch, wrapped[wording[0], kind[index]], same, tables[wording[1]], own)

    if not stage.run(loss_of):
        return
    stage.use_average()
    model.eval()
    model.save_pretrained(args.output / "judge")
    (args.output / "judge" / "questions.json").write_text(json.dumps(
        {"families": FAMILIES, "colors": COLORS, "patterns": PATTERNS, "views": VIEWS, "questions": asked}, indent=1))
    if args.heldout:
        held = load_pictures(args.heldout, device, limit=4000)
        truth = {"family": held.labels.family, "color": held.labels.color, "pattern": held.labels.pattern, "view": held.clear_views}
        measured = accuracy(answer(model, tokenizer, held.images, held.labels.family), truth)
        print(f"right on {len(held.views)} unseen renders:", {k: round(v, 4) for k, v in measured.items()}, flush=True)
        if not all(math.isfinite(v) for v in measured.values()):
            raise RuntimeError("the judge's accuracies are not finite")


if __name__ == "__main__":
    main()
