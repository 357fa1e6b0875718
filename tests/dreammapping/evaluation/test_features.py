"""Networks that see pictures, against other code on the same files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from dreammapping.errors import ConfigError, DreamMappingError
from dreammapping.evaluation import features as module
from dreammapping.evaluation.clip_score import clip_scores
from dreammapping.evaluation.features import load_extractor
from dreammapping.evaluation.fid import frechet_distance
from PIL import Image

from tests.helpers.tiny_clip import LENGTH, SIDE, make_tiny_clip

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["a red striped mug", "a wooden chair", "a house on the table"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip"), seed=6)  # whose scores are above 0, where torchmetrics cuts them


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Three of 40 x 56 pixels, of 8 bits."""
    return torch.randint(0, 256, (3, 40, 56, 3), generator=torch.Generator().manual_seed(0)).float() / 255


def test_clip_features_are_openais_recipe(folder, pictures):
    """Pillow's bicubic resizing of the shorter side, the middle cut out, the mean and standard deviation, then transformers' own model."""
    from transformers import CLIPModel

    rows = []
    for picture in pictures:
        image = Image.fromarray((picture * 255).round().byte().numpy()).resize((round(56 * SIDE / 40), SIDE), Image.Resampling.BICUBIC)
        left = (image.width - SIDE) // 2
        rows.append(np.asarray(image, dtype=np.float32)[:, left : left + SIDE] / 255)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy((np.stack(rows) - mean) / std).float().permute(0, 3, 1, 2)
    model = CLIPModel.from_pretrained(folder).eval()
    expected = model(input_ids=torch.tensor([[0, 1]]), pixel_values=pixels).image_embeds
    seen = load_extractor(f"clip:{folder}").features(pictures)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
    assert (seen[0] - seen[1]).abs().max() > 0.01  # the network sees a difference


def test_scores_are_torchmetrics(folder, pictures):
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPModel, CLIPTokenizer

    class Plain(CLIPModel):
        """As torchmetrics expects it of transformers 4."""

        def get_image_features(self, pixels):
            return self.visual_projection(self.vision_model(pixels).pooler_output)

        def get_text_features(self, ids, mask):
            return self.text_projection(self.text_model(ids, mask).pooler_output)

    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), module._pillow_processor().from_pretrained(folder)

    def process(text=None, images=None, **options):
        return tokenizer(text, **options) if images is None else processor(images, return_tensors="pt")

    ours = load_extractor(f"clip:{folder}")
    found = [clip_scores(ours.features(pictures[i : i + 1]), ours.text_features([text])[0]).item() for i, text in enumerate(TEXTS)]
    for i, text in enumerate(TEXTS):
        image = (pictures[i] * 255).round().byte().permute(2, 0, 1)
        theirs = clip_score(image, text, lambda: (Plain.from_pretrained(folder).eval(), process)).item()
        assert max(found[i], 0.0) == pytest.approx(theirs, abs=1e-3)
    assert max(found) > 1.0 and len({round(score, 2) for score in found}) == 3


def test_texts_are_told_alone_and_together_alike_and_long_ones_are_cut(folder):
    ours = load_extractor(f"clip:{folder}")
    together = ours.text_features(TEXTS)
    torch.testing.assert_close(together, torch.cat([ours.text_features([text]) for text in TEXTS]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert ours.text_features(["a red mug " * LENGTH]).isfinite().all()


def test_batches_change_nothing(folder, pictures):
    ours = load_extractor(f"clip:{folder}")
    many = pictures.repeat(7, 1, 1, 1)
    assert len(many) > module.BATCH
    torch.testing.assert_close(ours.features(many)[-3:], ours.features(pictures), rtol=0, atol=1e-5)


def test_the_judge_is_an_extractor(pictures, monkeypatch):
    monkeypatch.chdir(ROOT)  # where load/ is
    judge = load_extractor("judge")
    assert torch.equal(judge.features(pictures), judge.judge.embed_images(pictures))
    scores = clip_scores(judge.features(pictures), judge.text_features(["a red mug"])[0])
    torch.testing.assert_close(scores, judge.judge.clip_score(pictures, "a red mug"))
    assert load_extractor(f"judge:{ROOT / 'load' / 'embedded-judge'}").name.startswith("judge:")


def test_the_papers_models_have_short_names(monkeypatch):
    from transformers import CLIPModel

    asked = []

    def refuse(name, **_):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(CLIPModel, "from_pretrained", refuse)
    for short in ("clip:ViT-L-14", "clip:vit-bigg-14"):
        with pytest.raises(ConfigError, match="(?s)no network.*hf download (openai|laion)/"):
            load_extractor(short)
    assert asked == ["openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("cilp:x", "did you mean 'clip'"), ("clip", "names no model"), ("clip:./nowhere", "cannot load the CLIP model ./nowhere"), ("judge:./no", "no judge")],
)
def test_mistakes_are_told(name, message):
    with pytest.raises(DreamMappingError, match=message):
        load_extractor(name)


@pytest.mark.parametrize("shape", [(3, 40, 56), (0, 8, 8, 3), (2, 3, 8, 8)])
def test_other_shapes_are_told(folder, shape):
    with pytest.raises(DreamMappingError, match=r"\[N, H, W, 3\]"):
        load_extractor(f"clip:{folder}").features(torch.zeros(shape))


# ---- Inception ----


@pytest.fixture
def stand_in(monkeypatch, tmp_path) -> Path:
    """torch-fidelity's interface with a network that averages bytes; returns a file of weights."""

    class Network(torch.nn.Module):
        def __init__(self, name, wanted, feature_extractor_weights_path):
            super().__init__()
            assert wanted == ["2048"]
            self.scale = torch.nn.Parameter(torch.load(feature_extractor_weights_path, weights_only=True)["scale"], requires_grad=False)

        def forward(self, x):
            assert x.dtype == torch.uint8 and x.shape[1] == 3
            return (self.scale * x.float().mean((2, 3)),)

    inner = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    inner.FeatureExtractorInceptionV3, inner.URL_INCEPTION_V3 = Network, "https://example.org/weights-inception-0a1b2c3d.pth"
    outer = ModuleType("torch_fidelity")
    outer.feature_extractor_inceptionv3 = inner
    monkeypatch.setitem(sys.modules, "torch_fidelity", outer)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", inner)
    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_inception_gets_bytes_and_reads_no_text(stand_in, pictures):
    extractor = load_extractor(f"inception:{stand_in}")
    torch.testing.assert_close(extractor.features(pictures), 2 * 255 * pictures.mean((1, 2)))
    with pytest.raises(DreamMappingError, match="reads no text"):
        extractor.text_features(["a mug"])


def test_weights_are_fetched_once_and_checked_by_their_name(stand_in, tmp_path, monkeypatch):
    calls = []

    def download(url, target, hash_prefix):
        calls.append((url, hash_prefix))
        Path(target).write_bytes(stand_in.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    load_extractor("inception")
    load_extractor("inception")
    assert calls == [("https://example.org/weights-inception-0a1b2c3d.pth", "0a1b2c3d")]


def test_no_network_is_told(stand_in, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ConfigError, match="(?s)unreachable.*inception:FILE"):
        load_extractor("inception")


def test_a_file_with_code_in_it_is_refused(stand_in, tmp_path):
    torch.save({"scale": Path}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("code.pth", "text.pth", "nowhere.pth"):
        with pytest.raises(ConfigError, match="holds no Inception weights"):
            load_extractor(f"inception:{tmp_path / name}")


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigError, match=r"pip install torch-fidelity.*\[eval\]"):
        load_extractor("inception")


def test_fid_of_inception_is_torchmetrics(tmp_path, monkeypatch):
    """torch-fidelity's real network with random weights, by torchmetrics and by us, on the same pictures."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError).FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", lambda *_, **__: {})
        patched.setattr(network, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        made = network("inception", ["2048"], feature_extractor_weights_path="none")
    for layer in made.modules():
        if isinstance(layer, torch.nn.Conv2d):  # the default weights let pictures fade from layer to layer
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    ours = load_extractor(f"inception:{tmp_path / 'weights.pth'}")
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(0, top, (6, 32, 32, 3), generator=generator) for top in (256, 128))
    original = {"antialias": False}  # resizing as FID was defined; torchmetrics' own default is another
    metric = FrechetInceptionDistance(2048, **original, feature_extractor_weights_path=str(tmp_path / "weights.pth")).set_dtype(torch.float64)
    metric.update(first.byte().permute(0, 3, 1, 2), real=True)
    metric.update(second.byte().permute(0, 3, 1, 2), real=False)
    found = frechet_distance(ours.features(second.float() / 255), ours.features(first.float() / 255))
    theirs = metric.inception(first.byte().permute(0, 3, 1, 2))
    torch.testing.assert_close(ours.features(first.float() / 255), theirs.float(), rtol=1e-4, atol=1e-4)
    assert found == pytest.approx(metric.compute().item(), rel=1e-3) and found > 1.0
