"""Wrong files in a real server: every loader refuses them in one sentence, and works again afterwards."""

import json
import shutil

import pytest
import torch
from harness import Graph
from make_checkpoints import FOREIGN, truncate, write_folder, write_pickle, write_single, write_sparse
from safetensors.torch import save_file
from small_models import install_folder, write_encoder

NODES = {
    "diffusion_models": ("OmniGen2LoadDiffusionModel", "unet_name", "omnigen2_fp16.safetensors"),
    "text_encoders": ("OmniGen2LoadEncoder", "text_encoder", "qwen_2.5_vl_fp16.safetensors"),
    "vae": ("OmniGen2LoadVAE", "vae_name", "ae.safetensors"),
}


@pytest.fixture
def refusal(server):
    """refusal(category, name) -> the sentence with which the loader of that category refuses the file."""

    def load(category: str, name: str) -> str:
        node, key, _ = NODES[category]
        graph = Graph()
        more = {} if category == "vae" else {"dtype": "auto"}
        loaded = graph.add(node, **{key: name}, **more)
        graph.add("PreviewAny", source=loaded[0])
        return sentence(server.run(graph, check=False), loaded)

    return load


def sentence(result, node) -> str:
    """The error of a run, which must be one readable line from `node`."""
    assert (result.status, result.error_node) == ("error", node), result.error
    assert "\n" not in result.error
    assert len(result.error) < 400
    return result.error


@pytest.mark.parametrize(
    "category, foreign, what",
    [
        ("diffusion_models", "flux", "a FLUX transformer"),
        ("diffusion_models", "boogu", "Boogu"),
        ("diffusion_models", "lumina2", "Lumina 2"),
        ("diffusion_models", "unknown", "unknown kind"),
        ("text_encoders", "encoder_7b", "7B Qwen2.5-VL"),
        ("text_encoders", "qwen3", "Qwen3"),
        ("text_encoders", "t5", "T5"),
        ("vae", "sd_vae", "4 latent channels"),
        ("vae", "flux2_vae", "32 latent channels"),
    ],
)
def test_another_models_file_is_named_and_the_right_one_too(server, refusal, category, foreign, what):
    write_sparse(server.models / category / f"{foreign}.safetensors", FOREIGN[foreign])
    message = refusal(category, f"{foreign}.safetensors")
    assert f"{foreign}.safetensors is" in message
    assert what in message
    assert NODES[category][2] in message


def test_a_qwen_image_file_is_named(server, refusal, golden):
    real = json.loads((golden / "real_keys.json").read_text(encoding="utf-8"))
    for category, part, what in (
        ("diffusion_models", "qwen_image_transformer", "Qwen-Image"),
        ("vae", "qwen_image_vae_diffusers", "Qwen-Image"),
    ):
        write_sparse(server.models / category / f"{part}.safetensors", real[part])
        assert what in refusal(category, f"{part}.safetensors")


@pytest.mark.parametrize("category", NODES)
def test_truncated_and_pickled_files_are_named_as_such(server, refusal, golden, category):
    part = {"diffusion_models": "transformer", "text_encoders": "mllm", "vae": "vae"}[category]
    folder = server.models / category
    truncate(write_single(folder / "cut.safetensors", golden, part))
    write_pickle(folder / "pickled.safetensors")
    assert "truncated" in refusal(category, "cut.safetensors")
    message = refusal(category, "pickled.safetensors")
    assert "pickled" in message and "never loaded" in message


def test_safetensors_under_the_ending_of_a_pickle_are_to_be_renamed(server, refusal, golden):
    write_single(server.models / "vae" / "ae.pt", golden, "vae")
    assert "rename it to ae.safetensors" in refusal("vae", "ae.pt")


def test_files_in_the_wrong_loader_are_sent_to_the_right_one(server, refusal, golden):
    write_single(server.models / "vae" / "dit.safetensors", golden, "transformer")
    write_single(server.models / "diffusion_models" / "vae.safetensors", golden, "vae")
    assert "OmniGen2 Load Diffusion Model" in refusal("vae", "dit.safetensors")
    assert "OmniGen2 Load VAE" in refusal("diffusion_models", "vae.safetensors")


def test_an_incomplete_file_is_refused(server, refusal, golden):
    without = {
        "diffusion_models": ("transformer", "layers.1."),
        "text_encoders": ("mllm", "model.layers.1."),
        "vae": ("vae", "decoder.mid_block."),
    }
    for category, (part, prefix) in without.items():
        write_single(
            server.models / category / "holes.safetensors",
            golden,
            part,
            keep=lambda name, prefix=prefix: not name.startswith(prefix),
        )
        message = refusal(category, "holes.safetensors")
        assert "lacks" in message or "tokens" in message, message


def test_an_encoder_with_a_vocabulary_of_its_own_needs_its_folder(server, refusal, golden):
    write_single(server.models / "text_encoders" / "own.safetensors", golden, "mllm")
    message = refusal("text_encoders", "own.safetensors")
    assert "tokenizer" in message and "OmniGen2 Load Folder" in message


def test_a_folder_whose_encoder_needs_a_tokenizer_of_its_own_is_told_which_part_to_get(server, golden):
    write_folder(server.models / "diffusers" / "no processor", golden)
    shutil.rmtree(server.models / "diffusers" / "no processor" / "processor")
    graph = Graph()
    loaded = graph.add("OmniGen2LoadFolder", folder="no processor", dtype="auto")
    graph.add("PreviewAny", source=loaded[0])
    message = sentence(server.run(graph, check=False), loaded)
    assert "mllm/ of no processor knows" in message and "get processor/ too" in message


def test_a_folder_that_lacks_a_part_is_refused(server, golden):
    path = write_folder(server.models / "diffusers" / "incomplete", golden)
    for file in (path / "vae").iterdir():
        file.unlink()
    (path / "vae").rmdir()
    graph = Graph()
    loaded = graph.add("OmniGen2LoadFolder", folder="incomplete", dtype="auto")
    graph.add("PreviewAny", source=loaded[0])
    message = sentence(server.run(graph, check=False), loaded)
    assert "lacks vae/" in message


def test_another_text_encoder_in_the_encode_node_is_refused(server):
    # Enough for Load CLIP to make a CLIP-L of it.
    weights = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(3072, 768)}
    save_file(weights, server.models / "text_encoders" / "clip_l.safetensors")
    graph = Graph()
    clip = graph.add("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion", device="default")
    node = graph.add(
        "OmniGen2Encode",
        clip=clip[0],
        prompt="",
        negative_prompt="",
        width=64,
        height=64,
        match_reference=True,
        max_pixels=0,
        max_side=0,
        encoder_sees_images=False,
        batch_size=1,
    )
    graph.add("PreviewAny", source=node[0])
    assert "another text encoder" in sentence(server.run(graph, check=False), node)


def test_the_next_run_is_unharmed(server, golden):
    name = install_folder(server.models, golden)
    write_encoder(server.models / "text_encoders" / "right.safetensors", golden)
    graph = Graph()
    clip = graph.add("OmniGen2LoadEncoder", text_encoder="right.safetensors", dtype="auto")
    loaded = graph.add("OmniGen2LoadFolder", folder=name, dtype="auto")
    graph.add("PreviewAny", source=clip[0])
    graph.add("PreviewAny", source=loaded[0])
    server.run(graph)
