"""`dev.py bench`: what is timed as a pair computes the same, and runs of ComfyUI's model are composed as it runs."""

import json
import os
import subprocess
import sys

import pytest
from harness import LAUNCHER, ROOT
from needed import need_comfyui


def call(script: str, *arguments: str) -> subprocess.CompletedProcess:
    need_comfyui()
    command = [sys.executable, LAUNCHER, ROOT / "tests" / "host" / script, *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, env=one_thread)


@pytest.fixture(scope="module")
def found():
    done = call("compare_bench.py")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_pairs_compute_the_same(found):
    compared = {name: difference for name, difference in found["differences"].items() if difference is not None}
    assert {name.split(" ")[-2] for name in compared} >= {"layer", "text", "noise", "reference"}
    assert max(compared.values()) < 1e-4, compared


def test_a_native_run_calls_its_blocks_as_often_as_the_bench_counts(found):
    assert found["called"] == found["planned"]


def test_whole_runs_of_both_models_agree(found):
    assert found["whole"] < 1e-4


def test_every_bar_has_its_figure(found):
    for what in ("core's template", "as many evaluations", "balanced against", "turbo against", "of which caching"):
        assert any(what in claim for claim in found["claims"]), what


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["paint-512x512"], "is no case"),
        (["edit-500x512"], "multiples of 16"),
        (["built-in", "--device", "gpu"], "cannot compute on 'gpu'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(arguments, says):
    done = call("bench.py", *arguments)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
