"""ComfyUI's single files load, whatever their prefix, naming and storage, and without a copy in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make_checkpoints import (
    golden_config,
    golden_weights,
    save_single,
    to_fp8,
    write_large_dit,
    write_single,
)
from safetensors.torch import save_file

from omnigen2_core.checkpoints import CONFIG_KEY, FileKind, SingleFile, config_of, dequantise, load_weights
from omnigen2_core.errors import CheckpointError
from omnigen2_core.profile import PUBLISHED
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_diffusion_model_loads_behind_either_prefix(tmp_path, golden, prefix):
    file = SingleFile(write_single(tmp_path / "dit.safetensors", golden, "transformer", prefix=prefix), FileKind.DIT)
    expected = golden_weights(golden, "transformer")
    state = file.state_dict()
    assert file.config == golden_config(golden, "transformer")
    assert file.info.dtype == "bf16"
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("part", ["vae", "vae_bfl"])
def test_a_vae_loads_under_diffusers_names_from_either_layout(tmp_path, golden, part):
    state = SingleFile(write_single(tmp_path / "ae.safetensors", golden, part), FileKind.VAE).state_dict()
    expected = golden_weights(golden, "vae")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_an_encoder_without_a_vision_tower_loads(tmp_path, golden):
    path = write_single(
        tmp_path / "te.safetensors",
        golden,
        "mllm",
        keep=lambda name: not name.startswith("visual."),
        dtype=torch.float16,
    )
    file = SingleFile(path, FileKind.ENCODER)
    assert not file.info.has_vision
    assert "model.norm.weight" in file.state_dict()


def test_a_small_file_without_a_config_is_refused_with_the_reason(tmp_path, golden):
    path = write_single(tmp_path / "dit.safetensors", golden, "transformer", with_config=False)
    with pytest.raises(CheckpointError, match=r"another width of an attention head \(16\).*\(120\).*omnigen2_config"):
        config_of(SingleFile(path, FileKind.DIT).info)


def test_a_broken_config_in_the_metadata_is_named(tmp_path, golden):
    path = tmp_path / "dit.safetensors"
    save_file(golden_weights(golden, "transformer"), path, metadata={CONFIG_KEY: "{"})
    with pytest.raises(CheckpointError, match="omnigen2_config in the metadata of dit.safetensors is not valid JSON"):
        config_of(SingleFile(path, FileKind.DIT).info)


def test_a_profile_travels_in_the_metadata(tmp_path, golden):
    path = write_single(tmp_path / "dit.safetensors", golden, "transformer", profile={"shift_base": 8.0})
    assert SingleFile(path, FileKind.DIT).profile.shift_base == 8.0
    plain = write_single(tmp_path / "plain.safetensors", golden, "transformer")
    assert SingleFile(plain, FileKind.DIT).profile == PUBLISHED


def test_weights_that_do_not_fit_are_named(tmp_path, golden):
    weights, config = golden_weights(golden, "transformer"), golden_config(golden, "transformer")
    model = OmniGen2Transformer(OmniGen2Config.from_dict(config), device="meta")
    incomplete = {name: tensor for name, tensor in weights.items() if "layers.2." not in name}
    with pytest.raises(CheckpointError, match=r"x.safetensors lacks \d+ of \d+ weights \(the first is layers.2"):
        load_weights(model, incomplete, "x.safetensors")
    with pytest.raises(CheckpointError, match=r"has 1 weights that the model does not know \(the first is more"):
        load_weights(model, weights | {"more": torch.zeros(1)}, "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x_embedder.bias has shape \[95\] where \[96\] is needed"):
        load_weights(model, weights | {"x_embedder.bias": torch.zeros(95)}, "x.safetensors")
    load_weights(model, weights, "x.safetensors")
    assert torch.equal(model.x_embedder.weight, weights["x_embedder.weight"])


# fp8


@pytest.mark.parametrize("style", ["cast", "scale_weight", "weight_scale"])
def test_fp8_weights_come_back_to_within_their_precision(tmp_path, golden, style):
    weights = golden_weights(golden, "transformer")
    path = save_single(tmp_path / "fp8.safetensors", to_fp8(weights, style), golden_config(golden, "transformer"))
    file = SingleFile(path, FileKind.DIT)
    state = file.state_dict(torch.float32)
    assert file.info.dtype == "fp8_e4m3fn"
    assert file.info.scaled == (style != "cast")
    assert state.keys() == weights.keys()
    for name, expected in weights.items():
        expected = expected.float()
        assert state[name].dtype == torch.float32
        # e4m3 has three mantissa bits: half a step is 1/16 of the value, and a fixed step below 2^-6.
        floor = 2**-10 if style == "cast" else expected.abs().max() * 2**-10 / 448
        assert ((state[name] - expected).abs() <= expected.abs() / 16 + floor).all(), name


@pytest.mark.parametrize("style", ["cast", "scale_weight", "weight_scale"])
def test_a_transformer_stored_as_fp8_runs(golden, style):
    config = OmniGen2Config.from_dict(golden_config(golden, "transformer"))
    weights = golden_weights(golden, "transformer")

    def velocity(state):
        model = OmniGen2Transformer(config, device="meta")
        load_weights(model, state, "fp8.safetensors")
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, 16, 8, 8, generator=generator)
        text = torch.randn(1, 7, config.text_feat_dim, generator=generator)
        with torch.no_grad():
            return model(latents, torch.tensor([0.5]), text)

    exact = velocity({name: tensor.float() for name, tensor in weights.items()})
    stored = velocity(dequantise(to_fp8(weights, style), torch.float32))
    assert torch.isfinite(stored).all()
    assert (stored - exact).norm() / exact.norm() < 0.25


def test_formats_that_only_the_host_reads_are_refused(golden):
    weights = to_fp8(golden_weights(golden, "transformer"), "weight_scale")
    entry = next(name for name in weights if name.endswith(".comfy_quant"))
    weights[entry] = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="is stored as nvfp4, which only ComfyUI's own loaders read"):
        dequantise(weights, torch.float32)


def test_block_scales_are_refused_rather_than_applied_wrongly(golden):
    weights = to_fp8(golden_weights(golden, "transformer"), "weight_scale")
    scale = next(name for name in weights if name.endswith(".weight_scale"))
    with pytest.raises(CheckpointError, match="7 block scales"):
        dequantise(weights | {scale: torch.ones(7)}, torch.float32)


# Memory

_MEASURE = """
import json, sys
import torch
from omnigen2_core.checkpoints import FileKind, SingleFile, load_weights
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

def anonymous():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))

dtype = {"stored": None, "fp16": torch.float16}[sys.argv[2]]
before = anonymous()
file = SingleFile(sys.argv[1], FileKind.DIT)
model = OmniGen2Transformer(OmniGen2Config.from_dict(file.config), device="meta")
load_weights(model, file.state_dict(dtype), file.path.name)
for parameter in model.parameters():
    parameter.detach().view(torch.uint8).flatten()[::4096].sum()
print(json.dumps({"anonymous": anonymous() - before, "layers": len(model.layers)}))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is measured on Linux only")
@pytest.mark.parametrize(("dtype", "least", "most"), [("stored", 0.0, 0.05), ("fp16", 0.95, 1.2)])
def test_loading_two_gigabytes_takes_no_copy_as_stored_and_one_when_cast(tmp_path, golden, dtype, least, most):
    path = write_large_dit(tmp_path / "large.safetensors", 2.1, golden)
    try:
        size = path.stat().st_size
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(path), dtype], capture_output=True, text=True, env=environment
        )
        assert run.returncode == 0, run.stderr
        measured = json.loads(run.stdout)
        assert size >= 2.0e9
        assert least * size <= measured["anonymous"] <= most * size
    finally:
        path.unlink()
