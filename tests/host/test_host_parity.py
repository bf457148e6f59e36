"""`dev.py parity --host`: the reference's passes and runs, caches included, through the native MODEL and our sampler."""

import os
import shutil
import subprocess
import sys

import pytest
from harness import LAUNCHER, ROOT
from needed import need_comfyui


def replay(*arguments) -> subprocess.CompletedProcess:
    need_comfyui()
    command = [sys.executable, LAUNCHER, ROOT / "tests" / "host" / "parity.py", *arguments]
    # The golden model is too small for more than one thread to help.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, env=one_thread)


def test_the_native_model_replays_every_golden_pass_and_run(golden):
    run = replay(golden)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "0 do not" in run.stdout


def test_smaller_dtypes_and_folders_without_runs_are_replayed(golden, tmp_path):
    for file in golden.glob("dit_*"):
        shutil.copy(file, tmp_path)
    run = replay(tmp_path, "--dtype", "bf16")
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "7 hold, 0 do not, 1 not replayed" in run.stdout
    assert "weights in bf16, computed in float32 on cpu" in run.stdout


@pytest.mark.parametrize("arguments, says", [(["nowhere"], "nowhere is no folder"), ([".", "--device", "gpu"], "cannot compute on 'gpu'")])
def test_what_cannot_be_replayed_is_refused_in_a_sentence(arguments, says):
    run = replay(*arguments)
    assert run.returncode == 2
    assert says in run.stderr and "Traceback" not in run.stderr
