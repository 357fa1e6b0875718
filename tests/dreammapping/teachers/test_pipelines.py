"""Each supported kind of model against the real diffusers pipeline, on miniature folders, in float32."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from dreammapping.distillation import AdapterOptions, CFGConvention, guide
from dreammapping.teachers import DiffusersTeacher, TeacherOptions, diffusers_teacher

from tests.helpers.tiny_pipelines import make_tiny
from threestudio.models.prompt_processors.text_encoders import encode_prompts
from threestudio.utils.pretrained import resolve_pretrained

KINDS = {
    "sd": ("sd", {}),
    "dreamshaper": ("sd", {"text_width": 768, "width": 32, "image_size": 64, "downsample": 8}),
    "sdxl": ("sdxl", {}),
    "sdxl_v": ("sdxl", {"prediction_type": "v_prediction", "pooled": 30}),
    "sd3": ("sd3", {}),
    "sd3.5": ("sd3", {"newer": True, "shift": 1.0}),
    "sd3_no_t5": ("sd3", {"t5": False}),
}
PROMPT, NEGATIVE, SCALE = "a red striped mug", "ugly", 5.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    made = {name: make_tiny(root / name, kind, **options) for name, (kind, options) in KINDS.items()}
    # DreamShaper 7's scheduler: the noise is Stable Diffusion's, the sampler is another's.
    change(made["dreamshaper"], "scheduler/scheduler_config.json", _class_name="DEISMultistepScheduler")
    return made


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def teacher(folders, kind):
    return DiffusersTeacher.load(str(folders[kind]))


@pytest.fixture(scope="module")
def texts(folders, kind):
    prompts = (PROMPT, NEGATIVE)
    encoded = encode_prompts(resolve_pretrained(str(folders[kind])), prompts, torch.device("cpu"))
    return dict(zip(("cond", "negative"), (e[None] for e in encoded)))


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def noise(teacher, *size, batch=2):
    shape = (batch, teacher.latent_shape[0], *(size or teacher.latent_shape[1:]))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def pipeline_of(folder):
    absent = {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = DiffusionPipeline.from_pretrained(folder, **(absent if (folder / "transformer").is_dir() else {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", [None, (12, 6)])
def test_predictions_equal_the_pipelines_own_steps(folders, kind, teacher, texts, size):
    """Two guided steps of the real pipeline from given latents, and the same two with the teacher's predictions."""
    pipe, flow = pipeline_of(folders[kind]), kind.startswith("sd3")
    height, width = size or teacher.latent_shape[1:]
    if flow:
        steps, options = [900, 300], {"sigmas": [0.901, 0.301]}
    else:
        sampling = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **sampling)
        steps, options = [501, 1], {}
    seen = []

    def keep(_pipe, index, time, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    x = noise(teacher, height, width)
    # A flow model's state z is the teacher's x divided by a + sig.
    a, sig = teacher.schedule.coefficients(torch.tensor(steps[:1]), x)
    pipe(
        [PROMPT] * 2, negative_prompt=[NEGATIVE] * 2, guidance_scale=SCALE, num_inference_steps=2, output_type="latent",
        height=height * teacher.denoiser.factor, width=width * teacher.denoiser.factor,
        latents=x / (a + sig) if flow else x, callback_on_step_end=keep, **options,
    )  # fmt: skip
    for now, ahead, expected in zip(steps, [steps[1], None], seen):
        t = torch.full((2,), now)
        eps = teacher.predict(x, t, texts)
        guided = guide(eps["cond"], eps["negative"], SCALE, CFGConvention.USUAL)
        if ahead is None:
            # Flow ends in the clean image, DDIM in step 0 (set_alpha_to_one is false).
            x = teacher.schedule.ddim_step(x, guided, t, torch.full((2,), -1 if flow else 0))
            got = x
        else:
            x = teacher.schedule.ddim_step(x, guided, t, torch.full((2,), ahead))
            a, sig = teacher.schedule.coefficients(torch.tensor([ahead]), x)
            got = x / (a + sig) if flow else x
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_one_network_call_for_all_embeddings_with_batches_of_their_own(teacher, texts, monkeypatch):
    sizes, run = [], teacher.denoiser.run
    monkeypatch.setattr(teacher.denoiser, "run", lambda *a, **k: sizes.append(1) or run(*a, **k))
    x, t = noise(teacher), torch.tensor([20, 700])
    by_image = torch.cat([texts["cond"], texts["negative"]])
    before = teacher.calls.forwards
    got = teacher.predict(x, t, {"cond": by_image, "empty": texts["negative"]})
    assert len(sizes) == 1 and teacher.calls.forwards - before == 4
    for i in range(2):
        alone = teacher.predict(x[i : i + 1], t[i : i + 1], {"cond": by_image[i : i + 1], "empty": texts["negative"]})
        for name, eps in alone.items():
            torch.testing.assert_close(got[name][i : i + 1], eps, atol=1e-5, rtol=1e-4)


def test_a_learned_embedding_gets_the_gradient_of_tokens_and_pooled_vector(teacher, texts):
    text = texts["negative"].clone().requires_grad_()
    shape = teacher.denoiser.text
    before = teacher.calls.backwards
    eps = teacher.predict(noise(teacher), torch.tensor([20, 700]), {"empty": text}, differentiable=True)["empty"]
    eps.square().sum().backward()
    tokens, pooled = shape.unpack(text.grad)
    assert teacher.calls.backwards - before == 2
    assert (tokens.abs().sum(-1) > 0).all() and (pooled != 0).all()
    filling = text.grad[:, tokens.shape[1] :].flatten(1)[:, shape.pooled :]
    assert not filling.any(), "nothing reads the filling"


def test_images_equal_the_pipelines(folders, kind, teacher):
    pipe = pipeline_of(folders[kind])
    rgb = torch.rand(1, 3, *teacher.image_size, generator=torch.Generator().manual_seed(0))
    latents = teacher.encode(rgb, torch.Generator().manual_seed(7))
    with torch.no_grad():
        posterior = pipe.vae.encode(rgb * 2 - 1).latent_dist
    drawn = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(7))
    config = pipe.vae.config
    shift = config.shift_factor or 0.0
    assert (shift != 0) == kind.startswith("sd3")
    expected = (posterior.mean + posterior.std * drawn - shift) * config.scaling_factor
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
    # What a pipeline makes of these latents when it has nothing left to denoise: its own decoding.
    with torch.no_grad():
        image = pipe.vae.decode(latents / config.scaling_factor + shift).sample
    image = pipe.image_processor.postprocess(image, output_type="pt")
    torch.testing.assert_close(teacher.decode(latents), image, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [AdapterOptions(camera=False), AdapterOptions(rank=2)])
def test_a_fresh_copy_answers_as_the_teacher_and_learns(teacher, texts, options):
    copy = teacher.trainable_copy(options, torch.Generator().manual_seed(0))
    assert {p.data_ptr() for p in teacher.network.parameters()} == {
        p.data_ptr() for p in copy.network.parameters() if not p.requires_grad
    }
    x, t, text = noise(teacher), torch.tensor([20, 700]), texts["cond"]
    eps = teacher.predict(x, t, {"cond": text})["cond"]
    camera = torch.randn(2, 16, generator=torch.Generator().manual_seed(2)) if options.camera else None
    output = copy.predict(x, t, text, camera, differentiable=True)
    own = teacher.schedule.eps_from_output(copy.prediction_type, x, output, t)
    if camera is None:
        torch.testing.assert_close(own, eps)  # LoRA's second factors start at zero
    else:
        # The network is new, so that it changes the answer from the first step on; each camera in its own way.
        other = copy.predict(x, t, text, camera.flip(0))
        assert (output - other).abs().amax((1, 2, 3)).min() > 1e-6
    optimizer = torch.optim.Adam(copy.adapter.parameters(), lr=1e-2)
    target = teacher.schedule.target(copy.prediction_type, torch.zeros_like(x), x, t)
    losses = []
    for _ in range(8):
        loss = (copy.predict(x, t, text, camera, differentiable=True) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.995 * losses[0]
    assert all(p.grad is not None for p in copy.adapter.parameters())
    torch.testing.assert_close(teacher.predict(x, t, {"cond": text})["cond"], eps, rtol=0, atol=0)


def test_a_sized_pair_in_the_config_makes_images_that_are_not_square(folders, tmp_path):
    folder = shutil.copytree(folders["sdxl"], tmp_path / "wide")
    change(folder, "unet/config.json", sample_size=[6, 12])
    teacher = DiffusersTeacher.load(str(folder))
    assert teacher.latent_shape == (4, 6, 12) and teacher.image_size == (24, 48)
    latents = teacher.encode(torch.rand(1, 3, 24, 48), torch.Generator())
    assert latents.shape == (1, 4, 6, 12) and teacher.decode(latents).shape == (1, 3, 24, 48)
    assert teacher.denoiser.time_ids(6, 12).tolist() == [[24, 48, 0, 0, 24, 48]]


@pytest.mark.parametrize(("kind", "upcast"), [("sdxl", True), ("sdxl", False), ("sd3", True), ("sd", True)])
def test_the_vae_stays_in_float32_where_it_says_that_half_overflows(folders, tmp_path, monkeypatch, kind, upcast):
    folder = shutil.copytree(folders[kind], tmp_path / "half")
    change(folder, "vae/config.json", force_upcast=upcast)
    monkeypatch.setattr(diffusers_teacher, "weights_dtype", lambda device, options: torch.float16)
    teacher = DiffusersTeacher.load(str(folder))
    # The pipeline of Stable Diffusion 1 and 2 does not heed the flag, which its older folders lack.
    expected = torch.float32 if upcast and kind != "sd" else torch.float16
    assert {p.dtype for p in teacher.vae.parameters()} == {expected}
    assert {p.dtype for p in teacher.network.parameters()} == {torch.float16}
    first = next(teacher.vae.encoder.parameters())
    first.data.fill_(1e4)  # 27 inputs near 1 leave float16's range
    latents = teacher.encode(torch.ones(1, 3, *teacher.image_size), torch.Generator())
    assert latents.isfinite().all() == (expected == torch.float32) and latents.dtype == torch.float32


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_a_folder_without_index_is_known_by_its_network(folders, tmp_path, kind):
    folder = shutil.copytree(folders[kind], tmp_path / "bare")
    (folder / "model_index.json").unlink()
    a, b = (DiffusersTeacher.load(str(f)) for f in (folder, folders[kind]))
    assert type(a.denoiser) is type(b.denoiser)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_the_fingerprint_follows_the_networks_weights(folders, tmp_path, kind):
    prints = {DiffusersTeacher.load(str(make_tiny(tmp_path / str(s), kind, seed=s))).fingerprint for s in (0, 1)}
    assert len(prints) == 2 and DiffusersTeacher.load(str(folders[kind])).fingerprint in prints


@pytest.mark.parametrize(
    ("kind", "file", "values", "message"),
    [
        ("sd", "model_index.json", {"_class_name": "FluxPipeline"},
         "is a FluxPipeline.*supported are StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pip"),
        ("sdxl", "model_index.json", {"_class_name": "StableDiffusionPipeline"}, "asks for 'text_time' conditions"),
        ("sd", "model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "it is no SDXL U-Net"),
        ("sdxl", "unet/config.json", {"time_cond_proj_dim": 8}, "guidance distilled"),
        ("sdxl", "vae/config.json", {"latents_mean": [0.0] * 4}, "normalizes its latents by channel"),
        ("sd3", "scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "with use_dynamic_shifting; an SD3"),
        ("sd3", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "the scheduler DDIMScheduler"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(folders, tmp_path, kind, file, values, message):
    folder = shutil.copytree(folders[kind], tmp_path / "odd")
    change(folder, file, **values)
    with pytest.raises(Exception, match=f"(?s){message}") as caught:
        DiffusersTeacher.load(str(folder))
    assert caught.value.is_user_error


def test_schedulers_without_betas_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["sdxl"], tmp_path / "edm")
    config = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="EDMEulerScheduler, which names no beta schedule") as caught:
        DiffusersTeacher.load(str(folder))
    assert caught.value.is_user_error


def test_inpainting_networks_are_refused(folders, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = shutil.copytree(folders["sd"], tmp_path / "inpainting")
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    with pytest.raises(Exception, match="reads 9 channels and answers 4") as caught:
        DiffusersTeacher.load(str(folder))
    assert caught.value.is_user_error


def test_unfitting_texts_latents_and_options_are_told(folders):
    teacher = DiffusersTeacher.load(str(folders["sd3"]))
    x, t = noise(teacher), torch.tensor([20, 700])
    for shape in ((1, 24, 16), (1, 1, 32)):
        with pytest.raises(ValueError, match="prompts of width 32 with 1 pooled row.*prompt_processor.pretrained"):
            teacher.predict(x, t, {"cond": torch.zeros(shape)})
    with pytest.raises(ValueError, match="do not divide into patches of 2 x 2"):
        teacher.predict(x[..., :5], t, {"cond": torch.zeros(1, 30, 32)})
    with pytest.raises(ValueError, match="enable_attention_slicing: false"):
        DiffusersTeacher.load(str(folders["sd3"]), TeacherOptions(attention_slicing=True))
    with pytest.raises(ValueError, match="several text encoders"):
        teacher.embed([""])


def test_a_copy_from_another_kind_of_model_is_refused(folders):
    teacher = DiffusersTeacher.load(str(folders["sdxl"]))
    with pytest.raises(ValueError, match="a network of another kind .StableDiffusion3 instead of StableDiffusionXL"):
        teacher.trainable_copy(AdapterOptions(str(folders["sd3"])), torch.Generator())
    with pytest.raises(ValueError, match="texts of width"):
        DiffusersTeacher.load(str(folders["sd"])).trainable_copy(
            AdapterOptions(str(folders["dreamshaper"])), torch.Generator()
        )


@pytest.mark.parametrize(("kind", "shift"), [("sd3", 3.0), ("sd3.5", 1.0)])
def test_the_noise_of_a_flow_model_is_its_schedulers(folders, kind, shift):
    teacher = DiffusersTeacher.load(str(folders[kind]))
    steps = torch.arange(1000)
    _, s = teacher.schedule.flow_state(torch.zeros(1000, 1, 1, 1, dtype=torch.float64), steps)
    plain = (steps + 1) / 1000  # the scheduler's grid, shifted towards noise (Esser et al. 2024, section 5.3.2)
    expected = shift * plain / (1 + (shift - 1) * plain)
    torch.testing.assert_close(s.flatten()[:-1].float(), expected[:-1], rtol=1e-5, atol=1e-6)
    assert s[-2] < s[-1] < 1, "at pure noise eps says nothing about the image"
    x = noise(teacher)
    eps = teacher.predict(x, torch.tensor([999, 999]), {"cond": torch.zeros(1, 30, 32)})["cond"]
    assert teacher.schedule.x0_from_eps(x, eps, torch.tensor([999, 999])).isfinite().all()
