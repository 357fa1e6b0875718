"""Put the trained parts into one Stable Diffusion folder, half precision:

`python -m tabletop.export_teacher --vae build/tabletop/vae/vae --unet build/tabletop/unet --judge build/tabletop/judge-run/judge --output load`
"""
from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from .captions import vocabulary
from .models import noise_scheduler
from .tokenizer import copy_tokenizer
from .world import COLORS, FAMILIES, PATTERNS, VIEWS


def export_teacher(vae: Path, unet: Path, target: Path) -> None:
    """The folder that `pretrained_model_name_or_path` names."""
    target.mkdir(parents=True, exist_ok=True)
    AutoencoderKL.from_pretrained(vae).half().save_pretrained(target / "vae")
    UNet2DConditionModel.from_pretrained(unet / "unet").half().save_pretrained(target / "unet")
    CLIPTextModel.from_pretrained(unet / "text_encoder").half().save_pretrained(target / "text_encoder")
    noise_scheduler().save_pretrained(target / "scheduler")
    copy_tokenizer(unet / "tokenizer", target / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "requires_safety_checker": False,
        "safety_checker": [None, None], "scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    known = {"words": vocabulary(), "families": list(FAMILIES), "colors": list(COLORS), "patterns": list(PATTERNS), "views": list(VIEWS)}
    (target / "vocabulary.json").write_text(json.dumps(known, indent=1) + "\n")


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
