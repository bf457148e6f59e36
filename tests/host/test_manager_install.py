"""ComfyUI-Manager's own code installs the pack from a clone, under any folder name, and moves no package."""
from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
from functools import partial
from pathlib import Path

import pytest

from harness import COMFYUI, LAUNCHER, ROOT, Server
from needed import missing

# Run in the host's Python with the arguments URL, TARGET and, for ComfyUI, --base-directory.
INSTALL = """
import sys
url, target, sys.argv[1:] = sys.argv[1], sys.argv[2], sys.argv[3:]
sys.path.insert(0, {comfyui!r})
import comfy.options
comfy.options.enable_args_parsing()
from comfyui_manager.common import cm_global
from comfyui_manager.glob.manager_core import unified_manager
# As Manager's own start-up sets them.
cm_global.pip_overrides, cm_global.pip_blacklist, cm_global.pip_downgrade_blacklist = {{}}, {{"torch"}}, ["torch", "transformers"]
outcome = unified_manager.repo_install(url, target, instant_execution=True)
sys.exit(0 if outcome.result else outcome.msg)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A bare clone of the working tree, its uncommitted files included."""
    folder = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        missing("not a git clone, so there is nothing to clone from")
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "tree" / name)

    def git(*arguments: str, cwd: Path) -> None:
        subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments], cwd=cwd, check=True, capture_output=True)

    git("init", "-q", cwd=folder / "tree")
    git("add", "--all", cwd=folder / "tree")
    git("commit", "-q", "-m", "the pack", cwd=folder / "tree")
    git("clone", "-q", "--bare", str(folder / "tree"), str(folder / "served" / "pack.git"), cwd=folder)
    git("repack", "-a", "-d", "-q", cwd=folder / "served" / "pack.git")
    git("update-server-info", cwd=folder / "served" / "pack.git")
    return folder / "served"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def address(repository):
    """The clone's address on loopback."""
    handler = partial(QuietHandler, directory=str(repository))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/pack.git"
        served.shutdown()


def installed_packages() -> str:
    return subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout


def asked_for(server: Server) -> str:
    """The pack's name in the addresses that the help panel asks for: the frontend's `extractCustomNodeName`."""
    module = server.node("OmniGen2Encode")["python_module"]
    return urllib.parse.quote(module.split(".")[1].split("@")[0])


def test_manager_installs_the_pack_under_an_odd_name(tmp_path, address):
    server = Server(tmp_path / "Kömfy UI 画布", pack=None)
    target = server.base / "custom_nodes" / "Omni Gen2 – 模型 (1)@v1.0"
    before = installed_packages()

    script = tmp_path / "install.py"
    script.write_text(INSTALL.format(comfyui=str(COMFYUI)), encoding="utf-8")
    outcome = subprocess.run([sys.executable, LAUNCHER, script, address, target, "--cpu", "--base-directory", server.base],
                             capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert installed_packages() == before

    declared = {match for file in (ROOT / "nodes").glob("*.py") for match in re.findall(r'node_id="(OmniGen2\w+)"', file.read_text(encoding="utf-8"))}
    with server:
        assert declared and declared <= set(server.get("/object_info"))
        assert "IMPORT FAILED" not in server.log
        scripts = [path for path in server.get("/extensions") if urllib.parse.quote(target.name) in path]
        assert scripts and all(server.get_bytes(path) for path in scripts)
        name = urllib.parse.quote(target.name)
        assert server.get_bytes(f"/extensions/{name}/docs/OmniGen2Encode.md")
        for page in ("OmniGen2Encode.md", "OmniGen2Encode/zh.md", "images/OmniGen2Encode.png"):
            assert server.get_bytes(f"/extensions/{asked_for(server)}/docs/{page}") == (ROOT / "web/docs" / page).read_bytes()
        template = server.get("/workflow_templates")[target.name][0]
        assert server.get(f"/api/workflow_templates/{name}/{urllib.parse.quote(template)}.json")["nodes"]
        for outside in (f"{name}/..%2F..%2F__init__.py", f"{asked_for(server)}/docs/OmniGen2Encode%2F..%2F..%2F..%2F__init__.py"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                server.get_bytes(f"/extensions/{outside}")


@pytest.mark.parametrize("name", ["OmniGen2-1.0", "omnigen2@1.0"])
def test_help_pages_are_found_under_the_name_that_the_frontend_cuts_short(tmp_path, name):
    """And only they: a pack that has the shorter name keeps its own addresses."""
    server = Server(tmp_path, pack=None)
    shutil.copytree(ROOT, server.base / "custom_nodes" / name, ignore=shutil.ignore_patterns(".*", "tests", "__pycache__"))
    other = server.base / "custom_nodes" / name.partition(".")[0].partition("@")[0]
    (other / "web" / "docs").mkdir(parents=True)
    (other / "__init__.py").write_text("WEB_DIRECTORY = './web'\nNODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    (other / "web" / "docs" / "Other.md").write_text("theirs", encoding="utf-8")
    with server:
        assert asked_for(server) == other.name
        for page in ("OmniGen2Encode.md", "OmniGen2Encode/ko.md", "images/OmniGen2Encode.png"):
            assert server.get_bytes(f"/extensions/{other.name}/docs/{page}") == (ROOT / "web/docs" / page).read_bytes()
        assert server.get_bytes(f"/extensions/{other.name}/docs/Other.md") == b"theirs"
