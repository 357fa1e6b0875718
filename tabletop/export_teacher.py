"""Put the trained parts into one Stable Diffusion folder, half precision:

`python -m tabletop.export_teacher --vae build/tabletop/vae/vae --unet build/tabletop/unet --judge build/tabletop/judge-run/judge --output load`

While train_text_to_image still runs, the averages of its last checkpoint are exported: a preview of the teacher.
"""
from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from .captions import vocabulary
from .models import noise_scheduler, text_encoder, unet
from .tokenizer import copy_tokenizer
from .training import load_average
from .world import COLORS, FAMILIES, PATTERNS, VIEWS


def trained_networks(run: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """What train_text_to_image has written into `run`: its result, or the averages of its last checkpoint while it goes on."""
    if (run / "unet").exists():
        return UNet2DConditionModel.from_pretrained(run / "unet"), CLIPTextModel.from_pretrained(run / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    return load_average(unet(), run, "unet"), load_average(text_encoder(tokenizer), run, "text")


def export_teacher(vae: Path, run: Path, target: Path) -> None:
    """The folder that `pretrained_model_name_or_path` names."""
    target.mkdir(parents=True, exist_ok=True)
    network, text = trained_networks(run)
    AutoencoderKL.from_pretrained(vae).half().save_pretrained(target / "vae")
    network.half().save_pretrained(target / "unet")
    text.half().save_pretrained(target / "text_encoder")
    noise_scheduler().save_pretrained(target / "scheduler")
    copy_tokenizer(run / "tokenizer", target / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "requires_safety_checker": False,
        "safety_checker": [None, None], "scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    known = {"words": vocabulary(), "families": list(FAMILIES), "colors": list(COLORS), "patterns": list(PATTERNS), "views": list(VIEWS)}
    (target / "vocabulary.json").write_text(json.dumps(known, indent=1) + "\n")
    forget_paths(target)


def forget_paths(folder: Path) -> None:
    """Take out of all configs below `folder` where their networks were loaded from: a folder of the machine that trained them."""
    for config in folder.rglob("config.json"):
        values = json.loads(config.read_text())
        if values.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def export_judge(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    CLIPModel.from_pretrained(source).half().save_pretrained(target)
    copy_tokenizer(source, target)
    shutil.copyfile(source / "questions.json", target / "questions.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--unet", type=Path, help="folder of train_text_to_image, with unet, text_encoder and tokenizer in it")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--output", type=Path, default=Path("load"))
    args = parser.parse_args()
    if args.unet:
        export_teacher(args.vae, args.unet, args.output / "embedded-teacher")
    if args.judge:
        export_judge(args.judge, args.output / "embedded-judge")
    for folder in sorted(args.output.glob("embedded-*")):
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
