"""Shared fixtures: where the golden data lie, and imports that a mismatched torchvision cannot break."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Behind everything else: the root's `nodes` folder must not hide a host's module of that name.
sys.path += [str(ROOT), str(ROOT / "tests")]


def _mend_torch_companions() -> None:
    """What the launcher does for a server, for imports of transformers' model classes in the tests."""
    spec = importlib.util.spec_from_file_location("launcher", ROOT / ".ci" / "launcher.py")
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    launcher.mend_torch_companions()


_mend_torch_companions()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data."""
    return ROOT / "tests" / "golden"
