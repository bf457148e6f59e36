"""A file is known by its header, and a wrong one is refused in one sentence that says where the right one goes."""

import json

import pytest
import torch
from make_checkpoints import FOREIGN, golden_weights, truncate, write_pickle, write_single, write_sparse

from omnigen2_core.checkpoints import (
    FileKind,
    config_of,
    identify,
    require,
    require_vision,
    vae_to_bfl,
    vae_to_diffusers,
)
from omnigen2_core.checkpoints.header import Header, TensorInfo
from omnigen2_core.checkpoints.identify import classify
from omnigen2_core.checkpoints.published import PUBLISHED_MLLM, PUBLISHED_TRANSFORMER, PUBLISHED_VAE
from omnigen2_core.errors import CheckpointError

DIT, ENCODER, VAE, LORA, OTHER = FileKind.DIT, FileKind.ENCODER, FileKind.VAE, FileKind.LORA, FileKind.OTHER


@pytest.fixture(scope="module")
def real_keys(golden):
    return json.loads((golden / "real_keys.json").read_text(encoding="utf-8"))


def header_of(shapes: dict, prefix: str = "") -> Header:
    return Header({prefix + name: TensorInfo("BF16", tuple(shape), 2) for name, shape in shapes.items()})


def refusal(path, kind) -> str:
    with pytest.raises(CheckpointError) as caught:
        require(path, kind)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The published files


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ("omnigen2_transformer", DIT),
        ("flux_vae_diffusers", VAE),
        ("flux_vae_bfl", VAE),
        ("qwen25_vl_3b_transformers_4_51", ENCODER),
        ("qwen25_vl_3b_transformers_5_in_memory", ENCODER),
        ("comfyui_qwen25_3b_expected", ENCODER),
        ("qwen_image_transformer", OTHER),
        ("comfyui_qwen_image_expected", OTHER),
        ("qwen_image_vae_diffusers", OTHER),
        ("comfyui_wan_vae_expected", OTHER),
    ],
)
def test_the_real_files_are_told_apart_by_their_names_and_shapes(real_keys, keys, kind):
    info = classify(header_of(real_keys[keys]))
    assert info.kind is kind
    if "qwen_image_expected" in keys or "qwen_image_transformer" in keys:
        assert info.what == "a Qwen-Image transformer"
    if kind is OTHER and "vae" in keys:
        assert info.what == "a video VAE of the Wan and Qwen-Image kind"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_the_published_transformer_gets_the_published_config_from_its_shapes(real_keys, prefix):
    info = classify(header_of(real_keys["omnigen2_transformer"], prefix))
    assert (info.kind, info.prefix) == (DIT, prefix)
    assert config_of(info) == PUBLISHED_TRANSFORMER


@pytest.mark.parametrize("keys", ["qwen25_vl_3b_transformers_4_51", "qwen25_vl_3b_transformers_5_in_memory"])
def test_the_published_encoder_gets_the_published_config_and_has_eyes(real_keys, keys):
    info = classify(header_of(real_keys[keys]))
    assert config_of(info) == PUBLISHED_MLLM
    assert info.has_vision


@pytest.mark.parametrize("keys", ["flux_vae_diffusers", "flux_vae_bfl"])
def test_the_published_vae_gets_the_published_config(real_keys, keys):
    assert config_of(classify(header_of(real_keys[keys]))) == PUBLISHED_VAE


def test_an_encoder_file_without_a_vision_tower_is_accepted_but_asked_for_one_when_it_must_see(real_keys):
    info = classify(header_of(real_keys["comfyui_qwen25_3b_expected"]))
    assert info.kind is ENCODER
    with pytest.raises(CheckpointError, match=r"visual.*models/text_encoders/qwen_2.5_vl_fp16.safetensors"):
        require_vision(info)


def test_a_real_config_builds_the_real_names_and_shapes(real_keys):
    from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

    info = classify(header_of(real_keys["omnigen2_transformer"]))
    with torch.device("meta"):
        model = OmniGen2Transformer(OmniGen2Config.from_dict(config_of(info)))
    assert {name: list(t.shape) for name, t in model.state_dict().items()} == real_keys["omnigen2_transformer"]


# Names of the VAE


def test_vae_names_convert_both_ways_on_the_golden_weights(golden):
    diffusers, bfl = golden_weights(golden, "vae"), golden_weights(golden, "vae_bfl")
    assert_same_tensors(vae_to_bfl(diffusers), bfl)
    assert_same_tensors(vae_to_diffusers(bfl), diffusers)


def test_vae_names_convert_both_ways_on_the_full_lists(real_keys):
    diffusers = {name: torch.empty(shape, device="meta") for name, shape in real_keys["flux_vae_diffusers"].items()}
    bfl = {name: torch.empty(shape, device="meta") for name, shape in real_keys["flux_vae_bfl"].items()}
    assert {name: list(t.shape) for name, t in vae_to_bfl(diffusers).items()} == real_keys["flux_vae_bfl"]
    assert {name: list(t.shape) for name, t in vae_to_diffusers(bfl).items()} == real_keys["flux_vae_diffusers"]


def test_vae_names_that_are_right_already_stay(golden):
    diffusers, bfl = golden_weights(golden, "vae"), golden_weights(golden, "vae_bfl")
    assert_same_tensors(vae_to_bfl(bfl), bfl)
    assert_same_tensors(vae_to_diffusers(diffusers), diffusers)


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Refusals


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("flux", DIT, "a FLUX transformer"),
        ("flux_diffusers", DIT, "a FLUX transformer"),
        ("boogu", DIT, "a Boogu-Image transformer"),
        ("lumina2", DIT, "a Lumina 2 transformer"),
        ("encoder_7b", ENCODER, "the 7B Qwen2.5-VL encoder"),
        ("qwen3", ENCODER, "a Qwen3 text encoder"),
        ("t5", ENCODER, "a T5 text encoder"),
        ("sd_vae", VAE, "a VAE of another kind (4 latent channels)"),
        ("flux2_vae", VAE, "a VAE of another kind (32 latent channels)"),
        ("unknown", DIT, "something.else"),
    ],
)
def test_another_models_file_is_refused_by_name(tmp_path, name, kind, what):
    message = refusal(write_sparse(tmp_path / f"{name}.safetensors", FOREIGN[name]), kind)
    place = {
        DIT: "models/diffusion_models/omnigen2_fp16.safetensors",
        ENCODER: "models/text_encoders/qwen_2.5_vl_fp16.safetensors",
        VAE: "models/vae/ae.safetensors",
    }[kind]
    assert message.startswith(f"{name}.safetensors is ")
    assert what in message
    assert place in message


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_boogu_file_is_refused_behind_any_prefix(tmp_path, prefix):
    shapes = {prefix + name: shape for name, shape in FOREIGN["boogu"].items()}
    assert "Boogu" in refusal(write_sparse(tmp_path / "omnigen2.safetensors", shapes), DIT)


def test_the_real_qwen_image_file_is_refused_as_a_diffusion_model(tmp_path, real_keys):
    path = write_sparse(tmp_path / "qwen_image.safetensors", real_keys["comfyui_qwen_image_expected"])
    assert "is a Qwen-Image transformer, but the OmniGen2 diffusion model was expected" in refusal(path, DIT)


@pytest.mark.parametrize(
    ("part", "asked", "node"),
    [
        ("transformer", VAE, "OmniGen2 Load Diffusion Model"),
        ("transformer", ENCODER, "OmniGen2 Load Diffusion Model"),
        ("mllm", DIT, "OmniGen2 Load Encoder"),
        ("vae", DIT, "OmniGen2 Load VAE"),
        ("vae_bfl", ENCODER, "OmniGen2 Load VAE"),
    ],
)
def test_our_own_file_in_the_wrong_place_is_sent_to_its_node(tmp_path, golden, part, asked, node):
    message = refusal(write_single(tmp_path / "file.safetensors", golden, part), asked)
    assert node in message


def test_a_lora_in_place_of_a_model_is_sent_to_the_lora_node(golden):
    message = refusal(golden / "lora_weights.safetensors", DIT)
    assert "is a LoRA" in message
    assert "OmniGen2 Load LoRA" in message
    assert "models/loras/" in message


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.pt"])
def test_a_pickle_is_never_loaded_whatever_its_name(tmp_path, name):
    message = refusal(write_pickle(tmp_path / name), DIT)
    assert message.startswith(f"{name} is a pickled PyTorch file")


def test_an_old_pickle_is_recognised_too(tmp_path):
    path = tmp_path / "old.safetensors"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    assert "is a pickled PyTorch file" in refusal(path, DIT)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_a_truncated_file_says_so_and_how_much_is_there(tmp_path, golden, keep):
    path = truncate(write_single(tmp_path / "cut.safetensors", golden, "transformer"), keep)
    message = refusal(path, DIT)
    assert "cut.safetensors is truncated" in message
    assert str(path.stat().st_size) in message


def test_a_file_with_bytes_after_its_data_is_damaged(tmp_path, golden):
    path = write_single(tmp_path / "long.safetensors", golden, "vae")
    with path.open("ab") as file:
        file.write(b"more")
    assert "long.safetensors is damaged" in refusal(path, VAE)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>login</html>" * 20, "is a web page"),
        (b"\n\n  <html><body>404</body></html>" * 20, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        (b'{"error": "Access to model is restricted"}', "is an error message"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "is cut short or damaged"),
        (b"\x00" * 4096, "is not a safetensors file"),
        (b"\x10\x00", "is truncated"),
        (b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}', "has a damaged safetensors header"),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path, content, says):
    path = tmp_path / "omnigen2_fp16.safetensors"
    path.write_bytes(content)
    message = refusal(path, DIT)
    assert f"omnigen2_fp16.safetensors {says}" in message
    assert "OmniGen2 diffusion model was expected, which goes to models/diffusion_models/omnigen2_fp16.safetensors" in message


@pytest.mark.parametrize(
    "kind, place",
    [(DIT, "diffusion_models/omnigen2_fp16"), (ENCODER, "text_encoders/qwen_2.5_vl_fp16"), (VAE, "vae/ae")],
)
@pytest.mark.parametrize("damage", [truncate, write_pickle])
def test_who_refuses_an_unreadable_file_says_what_goes_where(tmp_path, golden, kind, place, damage):
    path = damage(write_single(tmp_path / "any.safetensors", golden, "vae"))
    message = refusal(path, kind)
    assert f"which goes to models/{place}.safetensors" in message and "\n" not in message


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "there is no file" in refusal(tmp_path / "gone.safetensors", DIT)
    assert "is a folder" in refusal(tmp_path, DIT)


def test_identifying_reads_only_the_header(tmp_path, real_keys):
    """A file whose data are a hole of 40 GB is identified at once."""
    path = write_sparse(tmp_path / "qwen_image.safetensors", real_keys["qwen_image_transformer"])
    assert path.stat().st_size > 40e9
    assert identify(path).what == "a Qwen-Image transformer"
