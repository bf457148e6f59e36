"""`dev.py parity --host`: the reference's passes and runs, caches included, through the native MODEL and our sampler."""

import os
import subprocess
import sys

import pytest
from harness import COMFYUI, LAUNCHER, ROOT


def test_the_native_model_replays_every_golden_pass_and_run(golden):
    if not (COMFYUI / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {COMFYUI}: run the tests through `python dev.py test`, which puts it there")
    command = [sys.executable, LAUNCHER, ROOT / "tests" / "host" / "parity.py", golden]
    # The golden model is too small for more than one thread to help.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, env=one_thread)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "0 do not" in run.stdout
