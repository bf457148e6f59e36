"""Transformers stored in fp8, in every form that files come in, on devices with fp8 and without."""

import json
import subprocess
import sys

import pytest
import torch
from harness import LAUNCHER, ROOT
from needed import need_comfyui
from make_checkpoints import golden_config, golden_weights, save_single, to_fp8
from safetensors.torch import save_file

PREFIX = "model.diffusion_model."
# Rounding to e4m3 costs 0.05 on these weights, to e5m2 0.2; a lost scale costs more than 1.
LARGEST_ERROR = 0.25


@pytest.fixture(scope="module")
def rows(golden, tmp_path_factory):
    need_comfyui()
    folder = tmp_path_factory.mktemp("storage")
    write_files(folder, golden)
    command = [sys.executable, LAUNCHER, ROOT / "tests" / "host" / "compare_storage.py", folder]
    report = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert report.returncode == 0, report.stderr[-3000:]
    return json.loads(report.stdout.splitlines()[-1])


def write_files(folder, golden) -> None:
    weights, config = golden_weights(golden, "transformer"), golden_config(golden, "transformer")
    styles = {style: to_fp8(weights, style) for style in ("cast", "scale_weight", "weight_scale")}

    def without(style: str, *ends: str) -> dict[str, torch.Tensor]:
        return {name: value for name, value in styles[style].items() if not name.endswith(ends)}

    forms = {
        **styles,
        "scale_weight unmarked": without("scale_weight", "scaled_fp8", "scale_input"),
        "weight_scale unmarked": without("weight_scale", "comfy_quant"),
        "cast whole": {name: value.to(torch.float8_e4m3fn) for name, value in weights.items()},
        "e5m2": {name: value.to(torch.float8_e5m2) for name, value in weights.items()},
        "rows": by_rows(weights),
    }
    save_single(folder / "plain.safetensors", weights, config)
    for name, state in forms.items():
        save_single(folder / f"{name}.safetensors", state, config)
        save_single(folder / f"{name} behind a prefix.safetensors", state, config, PREFIX)
    layers = [name.removesuffix(".comfy_quant") for name in styles["weight_scale"] if name.endswith(".comfy_quant")]
    described = {"layers": {PREFIX + name: {"format": "float8_e4m3fn"} for name in layers}}
    metadata = {"omnigen2_config": json.dumps(config), "_quantization_metadata": json.dumps(described)}
    state = {PREFIX + name: value for name, value in forms["weight_scale unmarked"].items()}
    save_file(state, folder / "described in the metadata behind a prefix.safetensors", metadata)


def by_rows(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The main layers' matrices in fp8 with a scale for each row."""
    out = dict(weights)
    for name, tensor in weights.items():
        if tensor.ndim == 2 and name.startswith("layers."):
            scale = tensor.float().abs().amax(1, keepdim=True) / 448
            out[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            out[f"{name}_scale"] = scale
    return out


def test_every_form_of_fp8_gives_nearly_the_plain_files_numbers(rows):
    assert len(rows) > 25
    assert {name: row["error"] for name, row in rows.items() if not row["error"] < LARGEST_ERROR} == {}


def test_fp8_stays_fp8_where_the_device_has_it(rows):
    for name in ("cast", "scale_weight unmarked", "described in the metadata behind a prefix", "made fp8"):
        assert "float8_e4m3fn" in rows[name]["kept"], rows[name]


def test_a_device_without_fp8_never_gets_it(rows):
    kept = {name: row["kept"] for name, row in rows.items() if "without fp8" in name}
    assert len(kept) == 9
    assert all("float8" not in dtype for dtypes in kept.values() for dtype in dtypes), kept
