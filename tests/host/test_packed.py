"""Smaller files in ComfyUI's own machinery, on the CPU: formats, LoRA, loading in part, hooks, saving, the encoder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import LAUNCHER, ROOT
from needed import need_comfyui

from omnigen2_core.convert.convert import convert
from omnigen2_core.nano.folder import WEIGHTS

FORMATS = {"q8_0": "gguf", "q6_k": "gguf", "q4_k": "gguf", "q5_0": "gguf", "fp8": "safetensors", "int8": "safetensors"}
EXACT = 1e-5
"""Both sides compute in fp32 with the same numbers."""
PACKED = 71
"""Matrices in the blocks of the built-in transformer."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    need_comfyui()
    folder = tmp_path_factory.mktemp("packed")
    write_files(folder)
    command = [sys.executable, LAUNCHER, ROOT / "tests" / "host" / "compare_packed.py", folder]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=TIMEOUT)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


TIMEOUT = float(os.environ.get("OMNIGEN2_TEST_TIMEOUT", 600))


def write_files(folder: Path) -> None:
    for format, ending in FORMATS.items():
        convert(WEIGHTS, folder / f"dit.{format}.{ending}", format, part="transformer")
    for format in ("q5_k", "int8"):
        convert(WEIGHTS, folder / format, format)
    shutil.copytree(WEIGHTS, folder / "plain")


def test_a_model_computes_with_what_its_file_stores(report):
    rows = report["formats"]
    assert rows.keys() == FORMATS.keys()
    assert {name: row["error"] for name, row in rows.items() if row["error"] > EXACT} == {}


def test_weights_stay_as_small_as_they_are_stored(report):
    for name, row in report["formats"].items():
        if name != "fp8":
            assert row["packed"] == PACKED and row["class"] == "PackedModelPatcher", name
    plain = sum(file.stat().st_size for file in (WEIGHTS / "transformer").glob("*.safetensors"))
    assert report["formats"]["q8_0"]["size"] < 0.65 * plain
    assert report["formats"]["q4_k"]["size"] < 0.42 * plain


def test_fp8_stays_fp8_in_comfyuis_own_form(report):
    row = report["formats"]["fp8"]
    assert "float8_e4m3fn" in row["kept"] and row["packed"] == 0


def test_a_lora_is_added_to_packed_weights_as_to_plain_ones(report):
    rows = report["patches"]
    assert rows["the LoRA changes"] > 0.01
    assert rows["whole"] < EXACT
    assert rows["packed with a LoRA"] == PACKED and rows["size with a LoRA"] == 0


def test_a_model_that_is_loaded_in_part_gives_the_same(report):
    rows = report["patches"]
    assert rows["modules out"] > 0 and rows["modules in part"] > 0
    for name in ("unloaded in part", "loaded again", "half in part"):
        assert rows[name] < EXACT, name


def test_without_the_lora_it_is_as_before(report):
    assert report["patches"]["clone without"] < EXACT and report["patches"]["unpatched"] < EXACT


def test_a_loras_tensors_can_wait_on_the_device(report):
    assert report["patches"]["prepared is"] and report["patches"]["prepared"] < EXACT


def test_loras_that_come_and_go_within_a_run_work(report):
    rows = report["patches"]
    for round in ("first", "second"):
        assert rows[f"hooks, {round}"] < EXACT and rows[f"hooks out, {round}"] < EXACT, round


def test_a_saved_model_holds_numbers_with_the_lora_in_them(report):
    rows = report["patches"]
    assert rows["saved"] < EXACT and rows["saved as"] == ["torch.float32"] and rows["saved tensors"] == 0


@pytest.mark.parametrize("format", ["q5_k", "int8"])
def test_an_encoder_reads_and_writes_with_what_its_file_stores(report, format):
    row = report["encoders"][format]
    assert row["error"] < EXACT and row["same words"]
    assert row["class"] == row["clone"] == "PackedModelPatcher"
