"""A real ComfyUI server in its own process, and a client for its HTTP and WebSocket interface.

    with Server(folder) as server:
        result = server.run(graph)          # API format: {id: {"class_type", "inputs"}}
        picture, = server.images(result)

A graph is written by hand or taken from `workflows/api/`. `Graph` helps to write one.
"""
from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import websocket
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
COMFYUI = ROOT / ".host" / "ComfyUI"
LAUNCHER = ROOT / ".ci" / "launcher.py"
TESTING_NODES = Path(__file__).resolve().parent / "testing_nodes"
PACK_NAME = "OmniGen2"
START_TIMEOUT = 300
RUN_TIMEOUT = 300


class Refused(Exception):
    """The server refused a prompt; `.error` and `.node_errors` are what it answered."""

    def __init__(self, status: int, answer: dict):
        super().__init__(f"HTTP {status}: {json.dumps(answer)[:2000]}")
        self.status = status
        self.error = answer.get("error")
        self.node_errors = answer.get("node_errors") or {}


@dataclass
class Result:
    """What came of one prompt.

    status: "success", "error" or "interrupted". executed and cached: node ids. ui: what each node
    reported for the canvas. previews: pictures sent while sampling. texts: (node, text) as shown on nodes
    while they run. events: all messages in order.
    """

    prompt_id: str
    status: str = ""
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    ui: dict[str, dict] = field(default_factory=dict)
    error: str = ""
    error_node: str = ""
    previews: list[Image.Image] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    events: list[tuple[str, dict]] = field(default_factory=list)

    def progress(self, node: str) -> list[tuple[int, int]]:
        """(step, of how many) as reported for this node."""
        return [(data["value"], data["max"]) for kind, data in self.events if kind == "progress" and data.get("node") == node]


class Graph:
    """Builds an API-format prompt: `node = graph.add("ClassType", name=value, link=other[0])`."""

    class Node(str):
        def __getitem__(self, slot: int) -> list:
            return [str(self), slot]

    def __init__(self):
        self.prompt: dict[str, dict] = {}

    def add(self, class_type: str, **inputs) -> "Graph.Node":
        """Add a node. A dotted input name, as dynamic inputs need, is given through `**{"a.b": value}`."""
        node = Graph.Node(len(self.prompt) + 1)
        self.prompt[str(node)] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
        return node


class Server:
    """A server with folders of its own below `folder`; `flags` are further options of ComfyUI's main.py."""

    def __init__(self, folder: Path, *flags: str, cpu: bool = True, pack: Path | None = ROOT):
        self.folder = Path(folder)
        self.base = self.folder / "base"
        self.log_file = self.folder / "server.log"
        self.flags = [*(["--cpu"] if cpu else []), *flags]
        self.process: subprocess.Popen | None = None
        self.port = 0
        for name in ("models/diffusers", "models/diffusion_models", "models/text_encoders", "models/vae", "models/loras",
                     "input", "output", "custom_nodes", "user/default"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        (self.base / "user/default/comfy.settings.json").write_text('{"Comfy.TutorialCompleted": true}', encoding="utf-8")
        packs = self.folder / "packs"
        packs.mkdir(exist_ok=True)
        _link(packs / "testing_nodes", TESTING_NODES)
        if pack is not None:
            _link(packs / PACK_NAME, pack)
        self.config = self.folder / "extra_model_paths.yaml"
        self.config.write_text(json.dumps({"tests": {"custom_nodes": str(packs)}}), encoding="utf-8")

    @property
    def models(self) -> Path:
        return self.base / "models"

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # ---- the process

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until the server answers; RuntimeError with the end of its log where it does not."""
        self.port = self.port or _free_port()
        command = [sys.executable, LAUNCHER, COMFYUI / "main.py", "--port", self.port, "--base-directory", self.base,
                   "--extra-model-paths-config", self.config, "--database-url", "sqlite:///:memory:",
                   "--disable-api-nodes", "--disable-auto-launch", *self.flags]
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT,
                                            cwd=self.folder, start_new_session=os.name != "nt",
                                            env={**os.environ, "PYTHONUNBUFFERED": "1"})
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"the server did not start:\n{self.log[-4000:]}") from None
                time.sleep(0.2)

    def stop(self) -> None:
        """Ask the server to end, as Ctrl-C does; end it by force after 15 s."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Stop and start again on the same port with the same folders."""
        self.stop()
        self.start()

    @property
    def log(self) -> str:
        """All that the server has printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def log_after(self, mark: int) -> str:
        """What was printed since `mark = len(server.log)`."""
        return self.log[mark:]

    def memory(self) -> dict[str, int]:
        """The server process's memory by Linux's account, in bytes (VmRSS, RssAnon, VmHWM, ...)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}

    # ---- HTTP

    def get(self, path: str, **query):
        """GET, decoded from JSON."""
        return json.loads(self.get_bytes(path, **query))

    def get_bytes(self, path: str, **query) -> bytes:
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, data=None):
        """POST JSON; the decoded answer, or None where it is empty."""
        request = urllib.request.Request(self.url + path, json.dumps(data or {}).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body.strip() else None

    def node(self, class_type: str) -> dict:
        """What `/object_info` says about a node."""
        return self.get(f"/object_info/{urllib.parse.quote(class_type)}")[class_type]

    def save_input(self, name: str, picture: Image.Image, **options) -> str:
        """Put a picture into the input folder, for LoadImage; returns its name."""
        picture.save(self.input / name, **options)
        return name

    def setting(self, name: str, value) -> None:
        """Set one of the frontend's settings, such as "Comfy.VueNodes.Enabled"."""
        request = urllib.request.Request(f"{self.url}/settings/{name}", json.dumps(value).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()

    def interrupt(self) -> None:
        self.post("/interrupt")

    def free(self) -> None:
        """Have all models unloaded and all results dropped, and wait until the server's loop has done it.

        The loop looks at what it was told after every prompt, but may miss being woken for it. When a second prompt has ended,
        it has looked after the first.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        graph = Graph()
        graph.add("PreviewAny", source="freed")
        for _ in range(2):
            self.wait(self.queue(graph))

    # ---- prompts

    def queue(self, graph: Graph | dict, client: str = "", **extra) -> str:
        """Queue a prompt and return its id; `Refused` where it does not validate."""
        prompt = graph.prompt if isinstance(graph, Graph) else graph
        body = {"prompt": prompt, "prompt_id": str(uuid.uuid4()), "extra_data": extra}
        if client:
            body["client_id"] = client
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as refusal:
            raise Refused(refusal.code, json.loads(refusal.read() or b"{}")) from None

    def run(self, graph: Graph | dict, timeout: float = RUN_TIMEOUT, on_event=None, check: bool = True, preview: bool = False) -> Result:
        """Queue a prompt and follow it to its end.

        on_event(kind, data, result) is called for every message while it runs, and may interrupt.
        check: an AssertionError unless it succeeds. preview: have samplers send previews.
        """
        client = str(uuid.uuid4())
        with Listener(self, client) as listener:
            prompt_id = self.queue(graph, client, **({"preview_method": "auto"} if preview else {}))
            result = listener.follow(prompt_id, timeout, on_event)
        if check:
            assert result.status == "success", f"{result.status} at node {result.error_node}: {result.error}"
        return result

    def wait(self, prompt_id: str, timeout: float = RUN_TIMEOUT) -> dict:
        """Wait until a queued prompt is in the history, and return its entry."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return entry
            time.sleep(0.2)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout} s:\n{self.log[-3000:]}")

    def forget(self, prompt_id: str) -> None:
        """Wait until a queued prompt has ended, and know nothing more of it, as after a restart."""
        self.wait(prompt_id)
        self.post("/history", {"delete": [prompt_id]})

    def images(self, result: Result, node: str | None = None) -> list[Image.Image]:
        """The pictures that all nodes, or this one, saved or previewed."""
        found = []
        for name, ui in result.ui.items():
            for entry in ui.get("images", []) if node in (None, name) else []:
                data = self.get_bytes("/view", filename=entry["filename"], subfolder=entry["subfolder"], type=entry["type"])
                found.append(Image.open(io.BytesIO(data)).convert("RGB"))
        return found

    def tensors(self, result: Result, node: str) -> dict:
        """What a TestSaveTensors node saved, by name."""
        from safetensors.torch import load_file

        return load_file(self.output / result.ui[node]["tensors"][0])

    def records(self, result: Result, node: str) -> dict:
        """What a TestReadRecord or TestInspect node reported."""
        return json.loads(result.ui[node]["record"][0])


class Listener:
    """One WebSocket connection of a client."""

    def __init__(self, server: Server, client: str):
        self.server = server
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId={client}", timeout=60)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def follow(self, prompt_id: str, timeout: float, on_event=None) -> Result:
        """Read messages until the prompt has ended; TimeoutError with the server's log where it does not."""
        result = Result(prompt_id)
        deadline = time.monotonic() + timeout
        while not result.status:
            self.socket.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                message = self.socket.recv()
            except (websocket.WebSocketTimeoutException, TimeoutError):
                raise TimeoutError(f"prompt {prompt_id} did not end within {timeout} s:\n{self.server.log[-3000:]}") from None
            if isinstance(message, bytes):
                _read_binary(message, result)
                continue
            parsed = json.loads(message)
            kind, data = parsed["type"], parsed.get("data") or {}
            if data.get("prompt_id") not in (None, prompt_id):
                continue
            result.events.append((kind, data))
            _read_event(kind, data, result)
            if on_event is not None:
                on_event(kind, data, result)
        return result


def _read_event(kind: str, data: dict, result: Result) -> None:
    if kind == "executing" and data.get("node"):
        result.executed.append(data["node"])
    elif kind == "execution_cached":
        result.cached.extend(data["nodes"])
    elif kind == "executed" and data.get("output"):
        result.ui[data["node"]] = data["output"]
    elif kind == "omnigen2.text":
        result.texts.append((data["node"], data["text"]))
    elif kind == "execution_success":
        result.status = "success"
    elif kind == "execution_interrupted":
        result.status, result.error_node = "interrupted", data.get("node_id", "")
    elif kind == "execution_error":
        result.status, result.error, result.error_node = "error", data["exception_message"].strip(), data["node_id"]


def _read_binary(message: bytes, result: Result) -> None:
    event, = struct.unpack(">I", message[:4])
    if event == 1:  # a preview: four more bytes for the picture's format, then the file
        result.previews.append(Image.open(io.BytesIO(message[8:])).convert("RGB"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link(link: Path, target: Path) -> None:
    if link.exists():
        return
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        shutil.copytree(target, link, ignore=shutil.ignore_patterns(".git", ".host", "tests", "__pycache__"))
