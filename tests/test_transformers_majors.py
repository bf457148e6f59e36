"""Both supported majors of transformers: the current one runs all tests, the oldest one those that use it."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from needed import missing

ROOT = Path(__file__).resolve().parent.parent
OLDEST = ROOT / ".host" / "transformers-4.50"
TESTS = [
    "tests/test_mllm.py", "tests/test_prompts.py", "tests/test_vision.py",
    "tests/test_generation.py", "tests/test_understanding.py", "tests/test_chat.py",
]  # fmt: skip


def run_with_oldest(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(OLDEST)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_the_encoder_works_with_the_oldest_supported_transformers():
    if not OLDEST.is_dir():
        missing(f"no transformers 4.50 in {OLDEST}: run the tests through `python dev.py test`, which puts it there")
    version = run_with_oldest("-c", "import transformers; print(transformers.__version__)").stdout.strip()
    assert version == "4.50.3"
    outcome = run_with_oldest("-m", "pytest", "-q", *TESTS)
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-2000:]
    assert " passed" in outcome.stdout.splitlines()[-1]
