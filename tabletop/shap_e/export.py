"""Put the trained parts into one folder in the layout of openai/shap-e:

`python -m tabletop.shap_e.export --latents build/tabletop/shap-e-latents --prior build/tabletop/shap-e-prior --output load/embedded-shap-e`

While train_prior still runs, the averages of its last checkpoint are exported.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from diffusers import PriorTransformer, ShapEPipeline
from diffusers.pipelines.shap_e import ShapERenderer
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ..export_teacher import forget_paths
from ..training import load_average
from .models import prior, renderer, scheduler, text_encoder


def export_shap_e(latents: Path, run: Path, target: Path) -> None:
    """Prior and text encoder in half precision, the renderer (1.4 MB) in single, because its marching cubes want exact signs."""
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    if (run / "prior").exists():
        network, text = PriorTransformer.from_pretrained(run / "prior"), CLIPTextModelWithProjection.from_pretrained(run / "text_encoder")
    else:
        network, text = load_average(prior(), run, "prior"), load_average(text_encoder(tokenizer), run, "text")
    model = ShapERenderer.from_pretrained(latents / "renderer") if (latents / "renderer").exists() else load_average(renderer(), latents, "renderer")
    pipeline = ShapEPipeline(prior=network.half(), text_encoder=text.half(), tokenizer=tokenizer, scheduler=scheduler(), shap_e_renderer=model.float())
    pipeline.save_pretrained(target)
    forget_paths(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--prior", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("load/embedded-shap-e"))
    args = parser.parse_args()
    export_shap_e(args.latents, args.prior, args.output)
    size = sum(f.stat().st_size for f in args.output.rglob("*") if f.is_file())
    print(f"{args.output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
