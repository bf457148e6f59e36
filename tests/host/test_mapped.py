"""Loaded weights are the mapped file itself where they can be: nothing is copied, and nothing that is done to a model
reaches the file."""

import json
import struct
import subprocess
import sys

import pytest
import torch
from harness import LAUNCHER, ROOT, Graph
from make_checkpoints import golden_config, golden_weights, save_single, write_folder, write_single
from needed import need_comfyui
from safetensors.torch import load_file, save_file
from small_models import install_folder, write_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of what is mapped")


@pytest.fixture(scope="module")
def report(tmp_path_factory, golden):
    need_comfyui()
    folder = tmp_path_factory.mktemp("mapped")
    write_folder(folder / "plain", golden, tokenizer=write_tokenizer(folder / "tokenizer", golden))
    for shard in (folder / "plain" / "transformer").glob("*.safetensors"):
        save_file({name: weight.float() for name, weight in load_file(shard).items()}, shard)
    write_odd(folder / "odd.safetensors", golden)
    half = {name: weight.half() for name, weight in golden_weights(golden, "vae").items()}
    save_single(folder / "vae.safetensors", half, golden_config(golden, "vae"))
    lora = golden / "lora_weights.safetensors"
    command = [sys.executable, LAUNCHER, ROOT / "tests" / "host" / "compare_mapped.py", folder, lora]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def write_odd(path, golden):
    """The golden transformer in fp32 behind a header of a length that leaves every number at an odd address."""
    write_single(path, golden, "transformer", dtype=torch.float32)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].rstrip()
    header += b" " * (1 + -len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def test_all_weights_of_all_parts_stay_in_their_files(report):
    assert report["whole"] == {"transformer": 1.0, "mllm": 1.0, "vae": 1.0}


def test_weights_in_another_dtype_than_the_file_s_are_copies(report):
    assert report["converted"] == {"transformer": 0.0, "mllm": 0.0}
    assert report["converted to"] == ["torch.bfloat16"]


def test_comfyui_can_be_told_to_map_nothing(report):
    assert report["without mmap"] == {"transformer": 0.0, "mllm": 0.0, "vae": 0.0}


@pytest.mark.parametrize("way", ["whole", "in place", "hooks"])
def test_a_lora_never_reaches_the_file_and_can_be_taken_out(report, way):
    row = report["patches"][way]
    assert row["changes"] and row["file is as it was"] and row["comes back"]
    assert row["mapped after"] == 1.0


def test_a_lora_takes_memory_for_the_weights_that_it_changes_only(report):
    assert 0 < report["patches"]["whole"]["mapped meanwhile"] < 1


def test_numbers_at_addresses_that_do_not_fit_are_copied(report):
    assert report["odd"] == {"addresses fit": True, "same answer": True}


def test_a_vae_in_half_precision_stays_so_and_computes_in_full(report):
    assert report["vae"] == {"kept": ["torch.float16"], "mapped": 1.0, "same latents": True, "same picture": True}


def test_a_model_whose_file_was_deleted_goes_on(report):
    assert report["answers without its file"]


def test_a_dropped_model_lets_go_of_its_file(report):
    assert report["mapped"] and not report["mapped when dropped"]


def test_cards_get_copies_and_paged_models_the_file_as_it_is(report):
    assert report["devices"] == {
        "cpu": ["torch.float32", True],
        "card": ["torch.float16", False],
        "paged": ["torch.float16", True],
        "cpu beside a card that is paged for": ["torch.float16", False],
    }


def test_free_lets_go_of_all_files(server, golden):
    """As a user does it who wants to replace a file."""
    name = install_folder(server.models, golden)
    graph = Graph()
    loaded = graph.add("OmniGen2LoadFolder", folder=name, dtype="bf16")
    encoded = graph.add("CLIPTextEncode", clip=loaded[1], text="a red cube")
    latent = graph.add("EmptySD3LatentImage", width=32, height=32, batch_size=1)
    sampled = graph.add(
        "KSampler", model=loaded[0], positive=encoded[0], negative=encoded[0], latent_image=latent[0], seed=0, steps=1,
        cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    graph.add("PreviewImage", images=graph.add("VAEDecode", vae=loaded[2], samples=sampled[0])[0])
    server.free()
    server.run(graph)
    # The golden encoder is stored in fp32 and so is a copy here.
    assert mapped(server, name) == {"transformer", "vae"}
    server.free()
    assert mapped(server, name) == set()


def mapped(server, name: str) -> set[str]:
    """The parts of a model folder of which the server's process has files mapped."""
    with open(f"/proc/{server.process.pid}/maps", encoding="utf-8") as lines:
        paths = [line.split(maxsplit=5)[5] for line in lines if f"diffusers/{name}/" in line]
    return {path.split(f"diffusers/{name}/")[1].split("/")[0] for path in paths}
