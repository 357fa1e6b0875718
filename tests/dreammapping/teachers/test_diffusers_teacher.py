"""The adapter to Stable-Diffusion-layout folders, on a miniature one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from dreammapping.teachers import DiffusersTeacher, TeacherOptions

from tests.helpers.tiny_teacher import make_tiny_teacher

T = torch.tensor([3, 640])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {
        kind: make_tiny_teacher(root / kind, prediction_type=kind) for kind in ("epsilon", "v_prediction", "sample")
    }


@pytest.fixture(scope="module")
def teacher(folders):
    return DiffusersTeacher.load(str(folders["epsilon"]))


def texts(batch=2):
    g = torch.Generator().manual_seed(0)
    return {"cond": torch.randn(batch, 24, 16, generator=g), "empty": torch.randn(1, 24, 16, generator=g)}


def noisy():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predictions_equal_the_networks_converted(folders, kind):
    teacher = DiffusersTeacher.load(str(folders[kind]))
    unet = UNet2DConditionModel.from_pretrained(folders[kind], subfolder="unet").eval()
    x = noisy()
    got = teacher.predict(x, T, texts())
    assert list(got) == ["cond", "empty"]
    for name, text in texts().items():
        with torch.no_grad():
            raw = unet(x, T, text.expand(2, -1, -1)).sample
        a, sig = teacher.schedule.coefficients(T, x)
        expected = {"epsilon": raw, "v_prediction": a * raw + sig * x, "sample": (x - a * raw) / sig}[kind]
        torch.testing.assert_close(got[name], expected, atol=1e-5, rtol=1e-4)


def test_all_embeddings_go_through_the_network_together(teacher, monkeypatch):
    sizes = []
    original = teacher.denoiser.run
    monkeypatch.setattr(teacher.denoiser, "run", lambda x, *a, **k: sizes.append(len(x)) or original(x, *a, **k))
    before = teacher.calls.forwards
    teacher.predict(noisy(), T, {**texts(), "negative": texts()["empty"]})
    assert sizes == [6] and teacher.calls.forwards - before == 6


def test_gradients_flow_only_on_request(teacher):
    x = noisy().requires_grad_()
    text = {name: e.requires_grad_() for name, e in texts().items()}
    assert not teacher.predict(x, T, text)["cond"].requires_grad
    before = teacher.calls.backwards
    teacher.predict(x, T, text, differentiable=True)["cond"].sum().backward()
    assert x.grad.abs().sum() > 0 and text["cond"].grad.abs().sum() > 0
    assert teacher.calls.backwards - before == 4  # one call of two images under two names
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())


def test_encoding_samples_the_posterior_with_gradient(teacher, folders):
    vae = AutoencoderKL.from_pretrained(folders["epsilon"], subfolder="vae").eval()
    rgb = torch.rand(2, 3, 32, 32, requires_grad=True)
    got = teacher.encode(rgb, torch.Generator().manual_seed(7))
    posterior = vae.encode(rgb * 2 - 1).latent_dist
    fresh = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    expected = (posterior.mean + posterior.std * fresh) * 0.18215
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    probe = torch.randn_like(got)
    (ours,), (theirs,) = (torch.autograd.grad((y * probe).sum(), rgb) for y in (got, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_other_image_sizes_are_resized(teacher):
    rgb = torch.rand(1, 3, 20, 48)
    resized = torch.nn.functional.interpolate(rgb, (32, 32), mode="bilinear", align_corners=False)
    a, b = (teacher.encode(x, torch.Generator().manual_seed(0)) for x in (rgb, resized))
    torch.testing.assert_close(a, b)


def test_decoding_gives_images(teacher, folders):
    vae = AutoencoderKL.from_pretrained(folders["epsilon"], subfolder="vae").eval()
    latents = 0.2 * noisy().requires_grad_()
    image = teacher.decode(latents)
    with torch.no_grad():
        expected = (vae.decode(latents / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-4)
    assert not image.requires_grad


@pytest.mark.parametrize(("channels", "image", "down"), [(4, 32, 4), (8, 64, 8), (3, 32, 2)])
def test_sizes_come_from_the_model(tmp_path, channels, image, down):
    folder = make_tiny_teacher(tmp_path, latent_channels=channels, image_size=image, downsample=down)
    teacher = DiffusersTeacher.load(str(folder))
    assert teacher.latent_shape == (channels, image // down, image // down) and teacher.image_size == (image, image)
    latents = teacher.encode(torch.rand(1, 3, image, image), torch.Generator())
    assert latents.shape == (1, *teacher.latent_shape)
    assert teacher.decode(latents).shape == (1, 3, image, image)


def test_half_precision_stays_off_the_cpu(folders):
    teacher = DiffusersTeacher.load(
        str(folders["epsilon"]), TeacherOptions(half_precision=True, attention_slicing=True)
    )
    assert {p.dtype for part in (teacher.network, teacher.vae) for p in part.parameters()} == {torch.float32}
    teacher = DiffusersTeacher.load(str(folders["epsilon"]), TeacherOptions(bfloat16_on_cpu=True))
    assert {p.dtype for p in teacher.network.parameters()} == {torch.bfloat16}
    eps = teacher.predict(noisy(), T, texts())["cond"]
    exact = DiffusersTeacher.load(str(folders["epsilon"])).predict(noisy(), T, texts())["cond"]
    assert eps.dtype == torch.float32
    assert (eps - exact).norm() < 0.05 * exact.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_is_half_precision_and_close(folders):
    exact = DiffusersTeacher.load(str(folders["v_prediction"]))
    half = DiffusersTeacher.load(str(folders["v_prediction"]), device="cuda")
    assert half.network.dtype == half.vae.dtype == torch.float16
    a, b = (t.predict(noisy().to(d), T, texts())["cond"].cpu() for t, d in ((exact, "cpu"), (half, "cuda")))
    assert b.dtype == torch.float32 and (a - b).norm() < 0.02 * a.norm()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    a, b = (t.encode(image.to(d), torch.Generator().manual_seed(0)).cpu() for t, d in ((exact, "cpu"), (half, "cuda")))
    assert (a - b).norm() < 0.02 * a.norm()
    # A teacher follows its input; back on the CPU it must not stay in half precision.
    half.predict(noisy(), T, texts())
    assert half.network.dtype == torch.float32


def test_weights_that_exist_only_in_half_precision_load(folders, tmp_path):
    folder = shutil.copytree(folders["epsilon"], tmp_path / "half")
    for part in ("unet", "vae"):
        weights = folder / part / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    a, b = (DiffusersTeacher.load(str(f)).predict(noisy(), T, texts())["cond"] for f in (folder, folders["epsilon"]))
    assert torch.equal(a, b)


def test_autocast_outside_does_not_reach_the_teacher(teacher):
    plain = teacher.predict(noisy(), T, texts())["cond"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.predict(noisy(), T, texts())["cond"], plain)


def test_embedded_texts_equal_the_text_encoders(teacher, folders):
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folders["epsilon"] / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folders["epsilon"] / "text_encoder").eval()
    texts = ["", "a red mug"]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = encoder(tokens.input_ids)[0]
    torch.testing.assert_close(teacher.embed(texts), expected)


def test_a_text_that_is_too_long_is_cut_with_a_warning(teacher):
    with pytest.warns(UserWarning, match="the text encoder takes 24 tokens; of 'red red .*it sees the first of 32"):
        long = teacher.embed(["red " * 30])
    assert torch.equal(long, teacher.embed(["red " * 22]))


def test_the_fingerprint_follows_the_weights(folders, tmp_path):
    same, other = make_tiny_teacher(tmp_path / "same"), make_tiny_teacher(tmp_path / "other", seed=1)
    prints = [DiffusersTeacher.load(str(f)).fingerprint for f in (folders["epsilon"], same, other)]
    assert prints[0] and prints[0] == prints[1] != prints[2]


def test_without_the_frameworks_resolver_the_fingerprint_is_the_same(folders, tmp_path):
    from dreammapping.teachers.loading import _folder_fingerprint
    from threestudio.utils.pretrained import resolve_pretrained

    folder = shutil.copytree(folders["epsilon"], tmp_path / "copy")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant that no loader takes")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle beside safetensors")
    expected = resolve_pretrained(str(folders["epsilon"])).fingerprint
    assert _folder_fingerprint(folder) == expected
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"other")
    assert _folder_fingerprint(folder) != expected and _folder_fingerprint(tmp_path / "nobody") == ""


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_a_missing_part_is_named(folders, tmp_path, part):
    folder = shutil.copytree(folders["epsilon"], tmp_path / "broken")
    shutil.rmtree(folder / part)
    with pytest.raises(Exception, match=part) as caught:
        DiffusersTeacher.load(str(folder))
    assert caught.value.is_user_error and "broken" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "pickle"])
def test_damaged_or_unsafe_weights_are_refused(folders, tmp_path, damage):
    folder = shutil.copytree(folders["epsilon"], tmp_path / "broken")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
        torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(Exception, match="(?s)unet.*safetensors") as caught:
        DiffusersTeacher.load(str(folder))
    assert caught.value.is_user_error


def test_an_unknown_kind_of_prediction_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["epsilon"], tmp_path / "flow")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**config, "prediction_type": "flow"}))
    with pytest.raises(Exception, match="predicts 'flow'; supported are epsilon, v_prediction") as caught:
        DiffusersTeacher.load(str(folder))
    assert caught.value.is_user_error
