"""The loaders in a real server: what they list, what core nodes make of their outputs, dtypes."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from harness import COMFYUI, LAUNCHER, ROOT, Graph, Refused, Server
from make_checkpoints import golden_config, golden_weights, save_single, to_fp8, write_single
from make_gguf import write_gguf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import install_folder, write_encoder

NANO = "OmniGen2-nano (built in)"


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def vae_cases(golden):
    return load_file(golden / "vae_cases.safetensors")


def options(server, node: str, name: str) -> list[str]:
    required = server.node(node)["input"]["required"][name]
    return required[1].get("options") or required[0]


def load_folder(graph: Graph, name: str, **more):
    return graph.add("OmniGen2LoadFolder", folder=name, dtype=more.pop("dtype", "auto"))


def text(server, clip_of, prompt: str = "a red cube") -> torch.Tensor:
    graph = Graph()
    encoded = graph.add("CLIPTextEncode", clip=clip_of(graph), text=prompt)
    node = graph.add("TestSaveTensors", name="text", conditioning=encoded[0])
    return server.tensors(server.run(graph), node)["cond.0"]


# What is listed


def test_folders_are_listed_wherever_they_lie_and_the_built_in_model_always(server, folder):
    listed = options(server, "OmniGen2LoadFolder", "folder")
    assert folder in listed
    assert listed[-1] == NANO


def test_a_folder_added_while_the_server_runs_appears(server, golden):
    name = install_folder(server.models, golden, "added later")
    try:
        assert name in options(server, "OmniGen2LoadFolder", "folder")
    finally:
        shutil.rmtree(server.models / "diffusers" / name)


def test_extra_model_paths_are_searched(tmp_path, golden):
    server = Server(tmp_path / "server")
    elsewhere = tmp_path / "elsewhere"
    install_folder(elsewhere, golden, "far away")
    write_single(elsewhere / "vae" / "far.safetensors", golden, "vae")
    settings = json.loads(server.config.read_text(encoding="utf-8"))
    write_gguf(elsewhere / "small" / "far.gguf", {"x": torch.zeros(2, 32)})
    settings["more"] = {"base_path": str(elsewhere), "diffusers": "diffusers", "vae": "vae", "unet_gguf": "small"}
    server.config.write_text(json.dumps(settings), encoding="utf-8")
    with server:
        assert "far away" in options(server, "OmniGen2LoadFolder", "folder")
        assert "far.safetensors" in options(server, "OmniGen2LoadVAE", "vae_name")
        assert "far.gguf" in options(server, "OmniGen2LoadDiffusionModel", "unet_name")
        assert text(server, lambda graph: load_folder(graph, "far away")[1]).shape[-1] == 64


def test_names_saved_on_windows_are_found(server, folder, golden):
    write_single(server.models / "vae" / "sub" / "ae.safetensors", golden, "vae_bfl")
    graph = Graph()
    loaded = load_folder(graph, folder.replace("/", "\\"))
    latent = graph.add("EmptySD3LatentImage", width=32, height=32, batch_size=1)
    other = graph.add("OmniGen2LoadVAE", vae_name="sub\\ae.safetensors")
    for vae in (loaded[2], other[0]):
        graph.add("PreviewImage", images=graph.add("VAEDecode", vae=vae, samples=latent[0])[0])
    server.run(graph)


@pytest.mark.parametrize(
    "node, values",
    [
        ("OmniGen2LoadVAE", {"vae_name": "gone.safetensors"}),
        ("OmniGen2LoadFolder", {"folder": "../vae", "dtype": "auto"}),
    ],
)
def test_a_name_that_is_not_listed_is_refused_before_anything_runs(server, node, values):
    graph = Graph()
    vae = graph.add(node, **values)
    latent = graph.add("EmptySD3LatentImage", width=32, height=32, batch_size=1)
    graph.add(
        "PreviewImage", images=graph.add("VAEDecode", vae=vae[2 if "folder" in values else 0], samples=latent[0])[0]
    )
    with pytest.raises(Refused, match="put .*there"):
        server.run(graph)


def test_names_may_come_from_other_nodes(server, folder, golden):
    write_single(server.models / "vae" / "linked.safetensors", golden, "vae")

    def run(vae_name: str, check: bool):
        graph = Graph()
        named = graph.add("TestGiveName", name=vae_name)
        loaded = graph.add("OmniGen2LoadFolder", folder=graph.add("TestGiveName", name=folder)[0], dtype="auto")
        latent = graph.add("EmptySD3LatentImage", width=32, height=32, batch_size=1)
        for vae in (loaded[2], graph.add("OmniGen2LoadVAE", vae_name=named[0])[0]):
            graph.add("PreviewImage", images=graph.add("VAEDecode", vae=vae, samples=latent[0])[0])
        return server.run(graph, check=check)

    run("linked.safetensors", check=True)
    assert "'gone.safetensors' is not in models/vae" in run("gone.safetensors", check=False).error


# What comes out, checked against the reference's numbers


@pytest.mark.parametrize("source", ["folder", "vae", "vae_bfl"])
def test_core_nodes_encode_and_decode_with_the_vae_as_the_reference_does(server, folder, golden, vae_cases, source):
    image = vae_cases["0/image"]
    unscaled = vae_cases["0/latent_to_decode"] / 0.3611 + 0.1159
    save_file(
        {"latent": unscaled.contiguous(), "image": ((image.movedim(1, -1) + 1) / 2).contiguous()},
        server.input / "vae.safetensors",
    )
    graph = Graph()
    if source == "folder":
        vae = load_folder(graph, folder)[2]
    else:
        write_single(server.models / "vae" / f"{source}.safetensors", golden, source)
        vae = graph.add("OmniGen2LoadVAE", vae_name=f"{source}.safetensors")[0]
    latent = graph.add("TestLoadLatent", file="vae.safetensors")
    decoded = graph.add("VAEDecode", vae=vae, samples=latent[0])
    encoded = graph.add("VAEEncode", vae=vae, pixels=decoded[0])
    saved = graph.add("TestSaveTensors", name="vae", image=decoded[0], latent=encoded[0])
    tensors = server.tensors(server.run(graph), saved)
    expected = ((vae_cases["0/decoded"] + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert (tensors["image"] - expected).abs().max() < 2e-5
    assert (tensors["latent"] - core_vae(golden).encode(2 * expected.movedim(-1, 1) - 1).mean).abs().max() < 1e-4


def core_vae(golden):
    from omnigen2_core.vae import AutoencoderKL, VAEConfig

    vae = AutoencoderKL(VAEConfig.from_dict(golden_config(golden, "vae")))
    vae.load_state_dict(golden_weights(golden, "vae"))
    return vae.requires_grad_(False)


def test_tiled_decoding_gives_the_same_picture(server, folder):
    graph = Graph()
    vae = load_folder(graph, folder)[2]
    latent = graph.add("TestLoadLatent", file="large.safetensors")
    save_file(
        {"latent": torch.randn(1, 16, 24, 24, generator=torch.Generator().manual_seed(1))},
        server.input / "large.safetensors",
    )
    whole = graph.add("VAEDecode", vae=vae, samples=latent[0])
    tiled = graph.add(
        "VAEDecodeTiled", vae=vae, samples=latent[0], tile_size=128, overlap=64, temporal_size=64, temporal_overlap=8
    )
    a = graph.add("TestSaveTensors", name="whole", image=whole[0])
    b = graph.add("TestSaveTensors", name="tiled", image=tiled[0])
    result = server.run(graph)
    a, b = server.tensors(result, a)["image"], server.tensors(result, b)["image"]
    assert a.shape == b.shape == (1, 192, 192, 3)
    assert (a - b).abs().max() < 1e-4


def test_a_vae_with_scaling_of_its_own_meets_the_model_in_fluxs(server, golden, vae_cases):
    config = golden_config(golden, "vae") | {"scaling_factor": 0.7, "shift_factor": -0.2}
    save_single(server.models / "vae" / "scaled.safetensors", golden_weights(golden, "vae"), config)
    save_file({"latent": vae_cases["0/latent_to_decode"] / 0.3611 + 0.1159}, server.input / "scaled.safetensors")
    graph = Graph()
    vae = graph.add("OmniGen2LoadVAE", vae_name="scaled.safetensors")
    decoded = graph.add("VAEDecode", vae=vae[0], samples=graph.add("TestLoadLatent", file="scaled.safetensors")[0])
    encoded = graph.add("VAEEncode", vae=vae[0], pixels=decoded[0])
    saved = graph.add("TestSaveTensors", name="scaled", image=decoded[0], latent=encoded[0])
    tensors = server.tensors(server.run(graph), saved)
    # The transformer's own scale is what both sides agree on.
    decoded = core_vae(golden).decode(vae_cases["0/latent_to_decode"] / 0.7 - 0.2)
    image = ((decoded + 1) / 2).clamp(0, 1)
    assert (tensors["image"].movedim(-1, 1) - image).abs().max() < 2e-5
    scaled = (core_vae(golden).encode(2 * image - 1).mean + 0.2) * 0.7
    assert ((tensors["latent"] - 0.1159) * 0.3611 - scaled).abs().max() < 1e-4


def test_clip_text_encode_gives_what_cores_own_encoder_gives(tmp_path, golden):
    """Core's encoder, shrunk to the size of the file, and ours: ids, weighted words and hidden states."""
    encoder = write_encoder(tmp_path / "encoder.safetensors", golden)
    command = [sys.executable, LAUNCHER, ROOT / "tests" / "host" / "compare_encoders.py", ROOT, COMFYUI, encoder]
    report = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert report.returncode == 0, report.stderr[-3000:]
    rows = json.loads(report.stdout.splitlines()[-1])
    assert all(row["same_tokens"] for row in rows), rows
    assert max(row["error"] for row in rows) < 2e-4, rows
    assert all(row["mask"] == [1, row["length"]] for row in rows), rows


def test_a_folder_without_a_tokenizer_reads_with_qwens_own(server, folder, golden):
    encoder = write_encoder(server.models / "text_encoders" / "qwens.safetensors", golden)
    name = "no tokenizer"
    path = server.models / "diffusers" / name
    shutil.copytree(server.models / "diffusers" / folder, path, ignore=shutil.ignore_patterns("processor", "mllm"))
    (path / "mllm").mkdir()
    shutil.copy(encoder, path / "mllm" / "model.safetensors")
    with safe_open(encoder, "pt") as opened:
        (path / "mllm" / "config.json").write_text(opened.metadata()["omnigen2_config"], encoding="utf-8")
    expected = text(server, lambda graph: graph.add("OmniGen2LoadEncoder", text_encoder=encoder.name, dtype="auto")[0])
    assert torch.equal(text(server, lambda graph: load_folder(graph, name)[1]), expected)


# dtypes


@pytest.mark.parametrize("dtype, tolerance", [("fp32", 1e-5), ("bf16", 0.03), ("fp8_e4m3fn", 0.2)])
def test_every_dtype_of_the_folder_loads_and_encodes(server, folder, dtype, tolerance):
    exact = text(server, lambda graph: load_folder(graph, folder)[1])
    found = text(server, lambda graph: load_folder(graph, folder, dtype=dtype)[1])
    assert found.dtype is torch.float32
    assert (found - exact).norm() / exact.norm() < tolerance


@pytest.mark.parametrize("style", ["cast", "scale_weight", "weight_scale"])
def test_encoders_stored_in_fp8_are_read(server, golden, style):
    file = write_encoder(server.models / "text_encoders" / "plain.safetensors", golden)
    weights = load_file(file)
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["omnigen2_config"])
    save_single(server.models / "text_encoders" / f"{style}.safetensors", to_fp8(weights, style), config)

    def load(name):
        return lambda graph: graph.add("OmniGen2LoadEncoder", text_encoder=name, dtype="auto")[0]

    exact, found = text(server, load("plain.safetensors")), text(server, load(f"{style}.safetensors"))
    assert 1e-4 < (found - exact).norm() / exact.norm() < 0.2


# Files that change


def test_a_replaced_file_is_loaded_again(server, golden):
    path = server.models / "vae" / "replaced.safetensors"

    def run():
        graph = Graph()
        vae = graph.add("OmniGen2LoadVAE", vae_name=path.name)
        latent = graph.add("EmptySD3LatentImage", width=32, height=32, batch_size=1)
        saved = graph.add(
            "TestSaveTensors", name="replaced", image=graph.add("VAEDecode", vae=vae[0], samples=latent[0])[0]
        )
        result = server.run(graph)
        return result.executed, (server.tensors(result, saved)["image"] if result.ui else None)

    write_single(path, golden, "vae")
    _, first = run()
    assert run()[0] == []
    time.sleep(0.01)
    weights = golden_weights(golden, "vae")
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"] + 1
    save_file(weights, path, metadata={"omnigen2_config": json.dumps(golden_config(golden, "vae"))})
    executed, second = run()
    assert executed
    assert not torch.equal(first, second)
