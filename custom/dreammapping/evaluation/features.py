"""Networks that turn pictures into vectors, by name:

    judge, judge:FOLDER     the embedded judge, or another folder like it
    clip:NAME               a CLIP model of transformers, a folder or a hub name; clip:vit-l-14 and clip:vit-bigg-14 are the paper's
    inception, inception:FILE   Inception v3 with the weights of FID (Heusel et al. 2017), by torch-fidelity (extra `eval`)

Weights come from where the hub keeps them; nothing is unpickled except Inception's, whose file is first checked to hold tensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, DreamMappingError, suggest
from .judge import Judge

EMBEDDED_JUDGE = Path("load") / "embedded-judge"
CLIP_NAMES = {"vit-l-14": "openai/clip-vit-large-patch14", "vit-bigg-14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"}
BATCH = 16
INCEPTION_POOL = "2048"
"""torch-fidelity's name of the last pooled layer, which FID is about."""
INSTALL = 'pip install torch-fidelity   (or, in this repository: pip install -e ".[eval]")'


class Extractor(Protocol):
    """What every network here answers."""

    name: str
    """As protocols and tables say it."""

    def features(self, images: Tensor) -> Tensor:
        """[N, D] float32 on the CPU, of sRGB pictures [N, H, W, 3] in [0, 1] of any size; unit vectors for judge and CLIP."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[len(texts), D] unit vectors, comparable with `features`. Raises `DreamMappingError` if the network reads no text."""
        ...


def load_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """The network called `name` on `device`. Raises ConfigError for an unknown name or weights that are not there."""
    kind, _, which = name.partition(":")
    makers: dict[str, Callable[[str, str, torch.device | str], Extractor]] = {
        "judge": JudgeFeatures, "clip": ClipFeatures, "inception": InceptionFeatures,
    }  # fmt: skip
    if kind not in makers:
        raise ConfigError(f"there is no feature network called {name!r}; {suggest(kind, makers)}")
    return makers[kind](name, which, device)


class JudgeFeatures:
    """The judge's eyes. The judge itself is `judge`."""

    def __init__(self, name: str, folder: str, device: torch.device | str) -> None:
        self.name, self.judge = name, Judge(folder or EMBEDDED_JUDGE, device)

    def features(self, images: Tensor) -> Tensor:
        return _in_batches(self.judge.embed_images, images)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return self.judge.embed_texts(list(texts)).cpu()


class ClipFeatures:
    """A CLIP model of transformers. Pictures are resized by its own processor, the one of Pillow: other resizing changes scores.

    Texts are cut after the model's length (77 tokens).
    """

    def __init__(self, name: str, model: str, device: torch.device | str) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        if not model:
            raise ConfigError(f"{name!r} names no model; write for instance clip:{next(iter(CLIP_NAMES))}, clip:OWNER/MODEL or clip:FOLDER")
        self.name, where = name, CLIP_NAMES.get(model.lower(), model)
        try:
            self.model = CLIPModel.from_pretrained(where, use_safetensors=True).float().eval().requires_grad_(False).to(device)
            self.tokenizer = CLIPTokenizer.from_pretrained(where)
            self.processor = _pillow_processor().from_pretrained(where)
        except (OSError, ValueError, KeyError, RuntimeError) as problem:
            reason = (str(problem).strip().splitlines() or ["no message"])[0]
            raise ConfigError(
                f"cannot load the CLIP model {where}: {type(problem).__name__}: {reason}\n"
                f"Give a folder in transformers' layout with .safetensors weights, or fetch it with: hf download {where}"
            ) from problem

    def features(self, images: Tensor) -> Tensor:
        return _in_batches(self._see, images)

    @torch.no_grad()
    def _see(self, images: Tensor) -> Tensor:
        pixels = self.processor(images=list(_bytes(images).numpy()), return_tensors="pt", input_data_format="channels_last").pixel_values
        states = self.model.vision_model(pixels.to(self.model.logit_scale.device)).pooler_output
        return F.normalize(self.model.visual_projection(states), dim=-1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        states = self.model.text_model(**tokens.to(self.model.logit_scale.device)).pooler_output
        return F.normalize(self.model.text_projection(states), dim=-1).cpu()


class InceptionFeatures:
    """Inception v3 of 2015, 2,048 numbers a picture, resized by TensorFlow 1's bilinear rule without smoothing, as FID was defined.

    clean-fid resizes otherwise, so its values differ.
    """

    def __init__(self, name: str, file: str, device: torch.device | str) -> None:
        self.name, module = name, _torch_fidelity()
        path = Path(file) if file else _fetched(module.URL_INCEPTION_V3)
        _check_tensors(path)
        self.network = module.FeatureExtractorInceptionV3("inception", [INCEPTION_POOL], feature_extractor_weights_path=str(path)).to(device)

    def features(self, images: Tensor) -> Tensor:
        return _in_batches(self._see, images)

    @torch.no_grad()
    def _see(self, images: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return self.network(_bytes(images).permute(0, 3, 1, 2).contiguous().to(device))[0]

    def text_features(self, texts: Sequence[str]) -> Tensor:
        raise DreamMappingError(f"{self.name} reads no text; take judge or clip:NAME for CLIP scores")


def _in_batches(see: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise DreamMappingError(f"pictures have the shape {list(images.shape)}; it must be [N, H, W, 3], N at least 1")
    return torch.cat([see(part).float().cpu() for part in images.split(BATCH)])


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().byte().cpu()


def _pillow_processor() -> Any:
    """Newer versions of transformers have two, and which one `CLIPImageProcessor` is depends on whether torchvision is installed."""
    try:
        from transformers import CLIPImageProcessorPil
    except ImportError:
        from transformers import CLIPImageProcessor

        return CLIPImageProcessor
    return CLIPImageProcessorPil


def _torch_fidelity() -> Any:
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except (ImportError, RuntimeError) as problem:  # RuntimeError: a torchvision of another torch
        raise ConfigError(
            f"the features 'inception' need torch-fidelity, which cannot be imported ({problem}).\nInstall it: {INSTALL}\n"
            "Without it, `judge` and clip:NAME are there."
        ) from problem
    return feature_extractor_inceptionv3


def _fetched(url: str) -> Path:
    """The weights in torch's cache, fetched if they are missing; their name ends in the beginning of their SHA-256."""
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=name.rsplit("-", 1)[-1].split(".")[0])
        except (OSError, RuntimeError) as problem:
            raise ConfigError(f"cannot fetch Inception's weights: {problem}\nPut {url} at {path}, or name the file: inception:FILE") from problem
    return path


def _check_tensors(path: Path) -> None:
    """Nothing but tensors may be in the file: torch-fidelity itself would unpickle anything."""
    import pickle

    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as problem:
        raise ConfigError(f"{path} holds no Inception weights: {problem}") from problem
