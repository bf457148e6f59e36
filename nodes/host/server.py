"""A ComfyUI server in a process of its own, and what the bench asks of it over HTTP.

Imports nothing of ComfyUI: the server is the same installation, started with this process's Python.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path

from ...omnigen2_core.errors import OmniGen2Error

PACK = Path(__file__).resolve().parents[2]
LAUNCHER = PACK / ".ci" / "launcher.py"
START_SECONDS = 300
END_SECONDS = 15
POLL_SECONDS = 0.02


class ServerError(OmniGen2Error):
    """The server did not start, did not end a run in time, refused one or failed in it; says which, and what it said."""


class Server:
    """A server with folders of its own below `folder`, which holds this pack and the custom nodes in `probes`.

    comfyui: the folder with main.py. flags: further options of main.py. threads: of PyTorch on the CPU, None for as many as
    it takes by itself. A context manager: leaving it ends the server.
    """

    def __init__(self, folder: Path, comfyui: Path, *flags: str, probes: Path | None = None, threads: int | None = None):
        self.base, self.log_file = folder / "base", folder / "server.log"
        for name in ("diffusers", "loras"):
            (self.base / "models" / name).mkdir(parents=True, exist_ok=True)
        for name in ("input", "output", "custom_nodes", "user"):
            (self.base / name).mkdir(exist_ok=True)
        packs = folder / "packs"
        packs.mkdir()
        (packs / "OmniGen2").symlink_to(PACK, target_is_directory=True)
        if probes is not None:
            (packs / probes.name).symlink_to(probes, target_is_directory=True)
        paths = folder / "extra_model_paths.yaml"
        # JSON is YAML, and quotes every path correctly.
        paths.write_text(json.dumps({"bench": {"custom_nodes": str(packs)}}), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            sys.executable, *([LAUNCHER] if LAUNCHER.is_file() else []), comfyui / "main.py", "--port", port,
            "--base-directory", self.base, "--extra-model-paths-config", paths, "--database-url", "sqlite:///:memory:",
            "--disable-api-nodes", "--disable-auto-launch", *flags,
        ]  # fmt: skip
        self.environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
        self.process: subprocess.Popen | None = None
        # A proxy that the machine is configured for does not know this machine's own address.
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> "Server":
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in self.command], stdout=log, stderr=subprocess.STDOUT, env=self.environment,
                start_new_session=os.name != "nt",
            )  # fmt: skip
        try:
            self._wait_for_answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ask("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise ServerError(f"ComfyUI did not start; the end of its log:\n{self.log_end()}") from None
                time.sleep(10 * POLL_SECONDS)

    def log_end(self) -> str:
        """The last lines that the server printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")[-3000:]

    def ask(self, path: str, data: object | None = None) -> object:
        """GET, or with `data` POST, decoded from JSON; None for an empty answer."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with self._direct.open(request, timeout=60) as answer:
            found = answer.read()
        return json.loads(found) if found.strip() else None

    def queue(self, prompt: Mapping) -> str:
        """Queues a prompt in API format; its id. Raises ServerError with the server's reasons where it refuses it."""
        try:
            return self.ask("/prompt", {"prompt": prompt, "prompt_id": str(uuid.uuid4())})["prompt_id"]
        except urllib.error.HTTPError as refusal:
            raise ServerError(f"ComfyUI refused the bench's prompt: {refusal.read().decode()[:2000]}") from None

    def run(self, prompt: Mapping, *, cancel_after: float | None = None, seconds: float = 600) -> str:
        """Runs a prompt to its end: "success" or "interrupted".

        cancel_after: seconds from when it begins to when it is interrupted, if it still runs then. Raises ServerError
        where it fails, or takes longer than `seconds`.
        """
        began, key = None, self.queue(prompt)
        deadline = time.monotonic() + seconds
        while not (found := self.ask(f"/history/{key}").get(key)):
            if time.monotonic() > deadline:
                raise ServerError(f"a run did not end within {seconds:g} s; the end of the log:\n{self.log_end()}")
            if cancel_after is not None:
                now = time.monotonic()
                if began is None and any(entry[1] == key for entry in self.ask("/queue")["queue_running"]):
                    began = now
                if began is not None and now - began >= cancel_after:
                    self.ask("/interrupt", {"prompt_id": key})
                    cancel_after = None
            time.sleep(POLL_SECONDS)
        if found["status"]["status_str"] == "success":
            return "success"
        messages = dict(found["status"]["messages"])
        if "execution_interrupted" in messages:
            return "interrupted"
        raise ServerError(f"a run of the bench failed: {messages.get('execution_error', {}).get('exception_message')}")

    def memory(self) -> int:
        """Bytes that the server's process holds, mapped files apart where the system tells them apart."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        except (OSError, StopIteration):
            import psutil

            return psutil.Process(self.process.pid).memory_info().rss

    def device_memory(self) -> int | None:
        """Bytes that the server's PyTorch holds on a card; None where it computes on the CPU."""
        device = self.ask("/system_stats")["devices"][0]
        return None if device["type"] == "cpu" else device["torch_vram_total"] - device["torch_vram_free"]

