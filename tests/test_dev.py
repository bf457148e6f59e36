"""dev.py's own decisions: ports, an existing ComfyUI's Python and packs, interruptions, a set-up that fails."""

import errno
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def dev():
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(dev, tmp_path, monkeypatch):
    """The set-up's module, with its private folder elsewhere."""
    monkeypatch.setattr(dev.environment, "HOST", tmp_path / "host")
    return dev.environment


@pytest.mark.parametrize("port", ["0", "-1", "65536", "1e3", "eight"])
def test_what_is_no_port_is_refused_with_its_range(dev, port, capsys):
    with pytest.raises(SystemExit) as ended:
        dev.main(["run", "--port", port])
    assert ended.value.code == 2
    assert f"{port} is no port; give a number from 1 to 65535" in capsys.readouterr().err


def test_a_port_that_the_user_may_not_serve_on_is_not_said_to_be_in_use(dev, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(dev.environment.SetupError, match="may not serve on port 80. Choose another"):
        dev.check_port(80)


def test_a_server_is_found_past_a_proxy(dev, monkeypatch):
    class Server(threading.Thread):
        def __init__(self):
            super().__init__(daemon=True)
            self.socket = socket.create_server(("127.0.0.1", 0))

        def run(self):
            connection, _ = self.socket.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")
            connection.close()

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    server.start()
    assert dev.answers(f"http://127.0.0.1:{server.socket.getsockname()[1]}/?template=x")


# An existing ComfyUI


def fake_python(path: Path, prints: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho {prints}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for Python")
@pytest.mark.parametrize("accelerator, flags", [("True", []), ("False", ["--cpu"])])
def test_an_existing_comfyui_is_started_with_its_own_python_as_it_can_compute(dev, tmp_path, accelerator, flags):
    (tmp_path / "main.py").touch()
    python = fake_python(tmp_path / "venv" / "bin" / "python", accelerator)
    assert dev.existing_comfyui(tmp_path) == [python, tmp_path / "main.py", *flags]


def test_a_folder_without_comfyui_is_refused(dev, tmp_path):
    with pytest.raises(dev.environment.SetupError, match="it has no main.py. Give the folder that holds main.py"):
        dev.existing_comfyui(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="makes symbolic links")
def test_a_pack_that_is_installed_already_is_not_loaded_twice(dev, tmp_path):
    comfyui, temporary = tmp_path / "ComfyUI", tmp_path / "temporary"
    (comfyui / "custom_nodes").mkdir(parents=True)
    temporary.mkdir()
    (comfyui / "custom_nodes" / "OmniGen2.disabled").symlink_to(ROOT)
    flags, name = dev.pack_flags(temporary, comfyui)
    assert flags[0] == "--extra-model-paths-config" and name == "OmniGen2"
    (comfyui / "custom_nodes" / "my-omnigen2").symlink_to(ROOT)
    assert dev.pack_flags(temporary, comfyui) == ([], "my-omnigen2")


def test_without_links_the_other_packs_beside_this_one_stay_off_and_those_of_the_installation_on(dev, tmp_path, monkeypatch):
    (tmp_path / "ComfyUI" / "custom_nodes" / "theirs").mkdir(parents=True)
    monkeypatch.setattr(dev, "link_folder", lambda *_: False)
    flags, name = dev.pack_flags(tmp_path, tmp_path / "ComfyUI")
    assert name == ROOT.name
    assert flags[2:] == ["--disable-all-custom-nodes", "--whitelist-custom-nodes", ROOT.name, "theirs"]


# Commands that dev.py hands over to


@pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C")
def test_on_ctrl_c_a_command_puts_its_things_in_order_before_dev_ends(tmp_path):
    done = tmp_path / "done"
    # A shell's background jobs, and so their children, ignore the signal until told otherwise.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = (
        f"{listen}\nimport pathlib, time\n"
        "try: print('started', flush=True); time.sleep(60)\n"
        f"except KeyboardInterrupt: time.sleep(1); pathlib.Path({str(done)!r}).touch(); raise SystemExit(3)"
    )
    script = f"{listen}; import dev, sys; sys.exit(dev.call([sys.executable, '-c', {command!r}]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 3
    assert done.is_file()


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_a_command_that_a_signal_ends_gives_the_shells_status(dev):
    assert dev.call([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9


# A set-up that fails


def test_a_full_disk_is_said_with_the_step_and_what_to_do(environment):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    environment.HOST.mkdir()
    with pytest.raises(environment.SetupError) as refused:
        environment._step("ComfyUI 0.30.0", "comfyui", "key", fail)
    message = str(refused.value)
    assert message.startswith("Setting up ComfyUI 0.30.0 failed: ") and "No space left" in message
    assert "it resumes here" in message
    assert environment._read_stamps() == {}


def test_a_folder_that_cannot_be_written_is_said(environment):
    environment.HOST.parent.joinpath("host").write_text("a file in the way")
    with pytest.raises(environment.SetupError, match="cannot be made"):
        environment.ensure_host()


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for Python")
def test_a_failed_pip_step_shows_its_last_lines_and_what_to_do(environment):
    fake_python(environment.python(), "ERROR: no such package; exit 1")
    with pytest.raises(environment.SetupError) as refused:
        environment._pip("install", "nothing", advice=environment._NETWORK)
    message = str(refused.value)
    assert "| ERROR: no such package" in message and "`pip install nothing` failed" in message
    assert "Check the network" in message and "setup.log" in message


def test_parts_of_the_tests_run_side_by_side_and_fail_if_one_does(dev, capsys, tmp_path):
    def part(name: str, status: int) -> list[str]:
        other = {"a": "b", "b": "a"}[name]
        script = (
            "import os, pathlib, sys, time\n"
            f"pathlib.Path({str(tmp_path)!r}, {name!r}).touch()\n"
            "print('===== test session starts =====', flush=True)\n"
            # Neither ends before the other has begun.
            f"while not pathlib.Path({str(tmp_path)!r}, {other!r}).exists(): time.sleep(0.01)\n"
            f"for i in range(50): print('{name} passing', flush=True)\n"
            "print('===== FAILURES =====', flush=True)\n"
            f"for i in range(50): print('{name} closing', flush=True); time.sleep(0.001)\n"
            f"sys.exit({status})"
        )
        return [sys.executable, "-c", script]

    assert dev.test_side_by_side([part("a", 0), part("b", 0)]) == 0
    capsys.readouterr()
    for name in "ab":
        (tmp_path / name).unlink()
    assert dev.test_side_by_side([part("a", 1), part("b", 0)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("a passing") == lines.count("b passing") == 50
    closings = [line for line in lines if line.endswith("closing")]
    assert closings in (["a closing"] * 50 + ["b closing"] * 50, ["b closing"] * 50 + ["a closing"] * 50)


def test_the_parts_of_the_tests_are_all_of_them(dev):
    folders = {f"tests/{path.relative_to(ROOT / 'tests').parts[0]}" for path in (ROOT / "tests").glob("*/test_*.py")}
    first, second, rest = dev.TEST_PARTS
    assert {*first, *second} == folders and rest == ["tests", *(f"--ignore={folder}" for folder in sorted(folders))]
