"""What the Registry archive holds, what an installation asks for, and how large a clone is."""
from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from needed import missing

ROOT = Path(__file__).resolve().parent.parent
MAX_CLONE = 60 * 2**20
ALLOWED_ACCELERATORS = {"NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal"}


def git(*arguments: str) -> list[str]:
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if answer.returncode != 0:
        missing("not a git clone, and the Registry archive is made of the files that git tracks")
    return answer.stdout.splitlines()


@pytest.fixture(scope="module")
def archive() -> set[str]:
    """Files that the Registry's tool packs: those that git tracks, less those that .comfyignore names."""
    return set(git("ls-files")) - set(git("ls-files", "-c", "-i", "-X", ".comfyignore"))


@pytest.fixture(scope="module")
def pyproject() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_tests_and_tools_stay_out_of_the_archive(archive):
    assert not [name for name in archive if name.startswith(("tests/", ".ci/", ".host/")) or name == "dev.py"]


def test_what_the_pack_needs_is_in_the_archive(archive):
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "nodes/__init__.py"} <= archive
    folders = {name.split("/")[0] for name in archive if "/" in name}
    assert {"nodes", "omnigen2_core", "web", "workflows", "locales", "subgraphs"} <= folders


def test_the_built_in_model_is_in_the_archive(archive):
    weights = "omnigen2_core/nano/weights/OmniGen2-nano/"
    parts = {name[len(weights):].split("/")[0] for name in archive if name.startswith(weights)}
    assert {"transformer", "vae", "mllm", "processor"} <= parts
    assert sum((ROOT / name).stat().st_size for name in archive if name.startswith(weights)) <= 24_000_000


def test_a_full_clone_is_small():
    # What a clone of this branch transfers: each object of its history once, however many packs of this
    # repository hold it and whatever other branches lie beside it.
    assert int(git("rev-list", "--objects", "--disk-usage", "HEAD")[0]) < MAX_CLONE


def test_installing_can_move_no_package(pyproject):
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []
    assert pyproject["project"]["dependencies"] == []
    assert not (ROOT / "install.py").exists() and not (ROOT / "prestartup_script.py").exists()


def test_the_registry_accepts_the_names(pyproject):
    project, comfy = pyproject["project"], pyproject["tool"]["comfy"]
    assert "comfyui" not in project["name"].lower() and not project["name"][0].isdigit()
    assert [part.isdigit() for part in project["version"].split(".")] == [True] * 3
    assert comfy["PublisherId"] and comfy["DisplayName"]
    accelerators = {entry.rpartition(" :: ")[2] for entry in project["classifiers"] if entry.startswith("Environment :: GPU")}
    assert {"NVIDIA CUDA", "AMD ROCm", "Apple Metal"} <= accelerators <= ALLOWED_ACCELERATORS
    # WEB_DIRECTORY registers the scripts; named here as well they would be loaded twice.
    assert "web" not in comfy


def test_one_minimum_version_everywhere(pyproject):
    root = load_root()
    assert pyproject["tool"]["comfy"]["requires-comfyui"] == ">=" + ".".join(map(str, root.MINIMUM_COMFYUI))


def load_root():
    spec = importlib.util.spec_from_file_location("pack_root", ROOT / "__init__.py")
    root = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(root)
    return root


def test_an_older_host_gets_one_clear_sentence(monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "comfyui_version", types.SimpleNamespace(__version__="0.3.64"))
    with pytest.raises(RuntimeError, match=r"needs ComfyUI 0\.30\.0 or newer, and this is 0\.3\.64: update ComfyUI\.$"):
        # Not by asyncio.run: in a whole run the browser's event loop lives in this thread.
        load_root().comfy_entrypoint().send(None)


def test_the_repository_command_needs_only_the_standard_library():
    for file in ("dev.py", ".ci/environment.py"):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"environment"}
        assert outside == set(), f"{file} imports {outside}"
