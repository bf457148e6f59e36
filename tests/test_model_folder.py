"""The authors' folder: what it holds, and what is said when something is missing."""

import json

import pytest
import torch
from make_checkpoints import FOREIGN, golden_config, golden_weights, truncate, write_folder, write_pickle, write_sparse

from omnigen2_core.checkpoints import PARTS, ModelFolder, find_model_folders, is_model_folder
from omnigen2_core.errors import CheckpointError
from omnigen2_core.profile import PUBLISHED


@pytest.fixture
def folder(tmp_path, golden):
    return write_folder(tmp_path / "OmniGen2", golden)


def refusal(ask) -> str:
    with pytest.raises(CheckpointError) as caught:
        ask()
    return str(caught.value)


@pytest.mark.parametrize("part", ["transformer", "vae", "mllm"])
def test_shards_come_back_as_the_weights_they_were(folder, golden, part):
    state = ModelFolder(folder).state_dict(part)
    expected = golden_weights(golden, part)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("part", ["transformer", "vae", "mllm"])
def test_the_config_of_a_part_is_its_json(folder, golden, part):
    assert ModelFolder(folder).config(part) == golden_config(golden, part)


def test_weights_can_be_asked_for_in_a_dtype(folder):
    state = ModelFolder(folder).state_dict("transformer", torch.float32)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_folder_without_a_profile_is_the_published_model(folder):
    assert ModelFolder(folder).profile == PUBLISHED


def test_a_folders_profile_comes_from_its_own_file(tmp_path, golden):
    path = write_folder(tmp_path / "small", golden, profile={"name": "small", "shift_base": 8.0, "max_pixels": 16384})
    profile = ModelFolder(path).profile
    assert (profile.name, profile.shift_base, profile.max_pixels) == ("small", 8.0, 16384)
    assert profile.max_references == PUBLISHED.max_references


def test_the_schedulers_shift_base_counts_unless_the_profile_has_one(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"time_shift_base": 12}))
    assert ModelFolder(folder).profile.shift_base == 12
    (folder / "omnigen2.json").write_text(json.dumps({"shift_base": 6}))
    assert ModelFolder(folder).profile.shift_base == 6


def test_the_tokenizer_is_found_in_the_processor_else_beside_the_encoder(folder):
    assert ModelFolder(folder).tokenizer_folder == folder / "processor"
    assert ModelFolder(folder).has_tokenizer
    (folder / "processor" / "tokenizer.json").unlink()
    assert not ModelFolder(folder).has_tokenizer
    assert "has no tokenizer" in refusal(lambda: ModelFolder(folder).tokenizer_folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / "mllm" / name).write_text("{}")
    assert ModelFolder(folder).tokenizer_folder == folder / "mllm"


def test_the_processor_config_is_the_pixel_preprocessing(folder):
    assert ModelFolder(folder).processor_config["max_pixels"] == 12845056
    (folder / "processor" / "preprocessor_config.json").unlink()
    assert "lacks processor/preprocessor_config.json" in refusal(lambda: ModelFolder(folder).processor_config)


def test_folders_are_listed_by_what_they_contain(tmp_path, folder):
    (tmp_path / "sdxl" / "unet").mkdir(parents=True)
    assert find_model_folders(tmp_path) == ["OmniGen2"]
    assert find_model_folders(tmp_path / "nowhere") == []
    assert is_model_folder(folder)


def test_a_complete_folder_passes_the_check(folder):
    ModelFolder(folder).check()


def test_missing_parts_are_all_named_at_once(folder):
    for part in ("vae", "processor"):
        (folder / part).rename(folder.parent / part)
    assert "OmniGen2 lacks vae/, processor/" in refusal(ModelFolder(folder).check)
    assert "OmniGen2 lacks vae/;" in refusal(lambda: ModelFolder(folder).check(PARTS))
    assert "OmniGen2 lacks vae/" in refusal(lambda: ModelFolder(folder).state_dict("vae"))


def test_a_missing_shard_is_named(folder):
    (folder / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    message = refusal(lambda: ModelFolder(folder).state_dict("transformer"))
    assert "transformer/ of OmniGen2 lacks diffusion_pytorch_model-00002-of-00003.safetensors (of 3 files)" in message


def test_a_truncated_shard_is_named(folder):
    truncate(folder / "mllm" / "model-00003-of-00003.safetensors")
    message = refusal(lambda: ModelFolder(folder).state_dict("mllm"))
    assert "model-00003-of-00003.safetensors is truncated" in message
    assert "it belongs into mllm/ of OmniGen2" in message


def test_shards_without_an_index_are_not_guessed_together(folder):
    next((folder / "mllm").glob("*.index.json")).unlink()
    assert "holds 3 safetensors files and no index" in refusal(lambda: ModelFolder(folder).state_dict("mllm"))


def test_an_index_that_lists_what_no_shard_holds_is_reported(folder):
    index = next((folder / "mllm").glob("*.index.json"))
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    assert "lacks 1 weights that its index lists (the first is model.extra.weight)" in refusal(
        lambda: ModelFolder(folder).state_dict("mllm")
    )


def test_an_index_cannot_lead_outside_its_folder(folder):
    index = next((folder / "mllm").glob("*.index.json"))
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    assert "names a file outside its folder" in refusal(lambda: ModelFolder(folder).state_dict("mllm"))


def test_pickled_weights_in_a_folder_are_refused(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    write_pickle(folder / "vae" / "diffusion_pytorch_model.bin")
    assert "vae/ of OmniGen2 holds only pickled weights" in refusal(lambda: ModelFolder(folder).state_dict("vae"))


def test_another_models_weights_in_a_part_are_refused(folder, golden):
    write_sparse(folder / "vae" / "diffusion_pytorch_model.safetensors", FOREIGN["flux"])
    message = refusal(lambda: ModelFolder(folder).state_dict("vae"))
    assert message.startswith("vae/ of OmniGen2 is a FLUX transformer, but the FLUX.1 VAE was expected")


def test_the_7b_encoder_in_the_folder_is_refused_too(folder):
    for file in (folder / "mllm").glob("*.safetensors*"):
        file.unlink()
    write_sparse(folder / "mllm" / "model.safetensors", FOREIGN["encoder_7b"])
    assert "mllm/ of OmniGen2 is the 7B Qwen2.5-VL encoder" in refusal(lambda: ModelFolder(folder).state_dict("mllm"))


def test_a_broken_config_is_named(folder):
    (folder / "vae" / "config.json").write_text("{")
    assert "vae/config.json of OmniGen2 is not valid JSON" in refusal(lambda: ModelFolder(folder).config("vae"))
    (folder / "vae" / "config.json").unlink()
    assert "OmniGen2 lacks vae/config.json" in refusal(lambda: ModelFolder(folder).config("vae"))


def test_what_is_no_model_folder_is_named(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"")
    assert "is a file, a folder" in refusal(lambda: ModelFolder(tmp_path / "file.safetensors"))
    assert "there is no folder" in refusal(lambda: ModelFolder(tmp_path / "gone"))
    assert "is no OmniGen2 folder" in refusal(lambda: ModelFolder(tmp_path))
