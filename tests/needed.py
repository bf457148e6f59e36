"""What the tests need of the machine they run on."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

COMFYUI = Path(__file__).resolve().parent.parent / ".host" / "ComfyUI"


def missing(what: str) -> NoReturn:
    """Ends the test: a skip on a user's machine, a failure where CI=true, which promises everything there is."""
    (pytest.fail if os.environ.get("CI", "").lower() == "true" else pytest.skip)(what)


def need_comfyui() -> None:
    """Ends a test that has no host to run in."""
    if not (COMFYUI / "main.py").is_file():
        missing(f"no ComfyUI in {COMFYUI}: run the tests through `python dev.py test`, which puts it there")
