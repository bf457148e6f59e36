"""`python dev.py run`, from its start to Ctrl-C, on the environment that the tests themselves run in."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import COMFYUI, ROOT, _free_port
from needed import need_comfyui

START_TIMEOUT = 300
STOP_TIMEOUT = 60

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C")


@pytest.fixture(autouse=True)
def _host():
    need_comfyui()


@contextmanager
def dev_run(*arguments):
    """`dev.py run` as a process that has printed that it is ready; yields (process, port, the lines so far)."""
    port = _free_port()
    # With the Python that made the environment, which is one that has nothing installed.
    command = [sys._base_executable, ROOT / "dev.py", "run", "--no-browser", "--port", port, *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**environment, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip
    printed: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [printed.put(line) for line in process.stdout], daemon=True).start()
    lines, deadline = [], time.monotonic() + START_TIMEOUT
    try:
        while not any("OmniGen2 is ready" in line for line in lines):
            assert process.poll() is None and time.monotonic() < deadline, "".join(lines)[-4000:]
            with suppress(queue.Empty):
                lines.append(printed.get(timeout=1))
        yield process, port, lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answer(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as found:
        return json.loads(found.read())


def stops(process: subprocess.Popen) -> int:
    """The exit status after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=STOP_TIMEOUT)


def gone(port: int) -> bool:
    try:
        answer(port, "/system_stats")
    except OSError:
        return True
    return False


def test_it_serves_our_nodes_at_the_address_that_it_prints_and_stops_on_ctrl_c():
    with dev_run("--cpu") as (process, port, lines):
        ready = next(line for line in lines if "OmniGen2 is ready" in line)
        assert f"http://127.0.0.1:{port}/?template=Try-it-text-to-image&source=OmniGen2" in ready
        assert answer(port, "/system_stats")["system"]["comfyui_version"]
        assert "OmniGen2Sample" in answer(port, "/object_info")
        assert answer(port, "/api/workflow_templates")["OmniGen2"]
        assert stops(process) == 0
        assert gone(port)


def test_a_port_in_use_is_said():
    taken = subprocess.run(
        [sys.executable, "-c",
         "import runpy, socket, sys\n"
         "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
         "sys.argv[1:] = ['run', '--no-browser', '--port', str(s.getsockname()[1])]\n"
         f"runpy.run_path({str(ROOT / 'dev.py')!r}, run_name='__main__')"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert taken.returncode == 1
    assert "is in use" in taken.stderr and "--port" in taken.stderr


def test_an_existing_installation_runs_the_pack_and_none_of_its_files_change(tmp_path):
    comfyui = tmp_path / "a ComfyUI of one's own"
    shutil.copytree(COMFYUI, comfyui, ignore=shutil.ignore_patterns("__pycache__", "user", "output", "temp"))
    before = files(comfyui)
    with dev_run("--cpu", "--comfyui", comfyui) as (process, port, _):
        assert "OmniGen2Sample" in answer(port, "/object_info")
        assert stops(process) == 0
    after = files(comfyui)
    assert {name: after.get(name) for name in before} == before
    # What ComfyUI writes in its own folder whenever it is started.
    assert {name.split("/")[0] for name in after.keys() - before.keys()} <= {"user", "output", "temp", "input"}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, without Python's caches."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}
