#!/usr/bin/env python3
"""The one command of this repository. Needs Python 3.10 or newer and nothing else.

    python dev.py run       start ComfyUI with this pack, the built-in model's template open
    python dev.py test      run the tests
    python dev.py parity    compare this code with a folder of reference data
    python dev.py score     draw new scenes with the built-in model and judge the pictures;
                            with --reflection, how it answers, judges and corrects itself;
                            with --formats, what smaller weight formats cost
    python dev.py train     train the built-in model
    python dev.py presets   what each way of saving work costs in right pictures
    python dev.py convert   make smaller files of the weights: GGUF, fp8, int8
    python dev.py bench     measure speed against ComfyUI's own OmniGen2 and the plain path; memory; loading

`python dev.py COMMAND --help` says more (all but `run` set up `.host/` first; that of `test` is
pytest's). Everything that is installed goes to `.host/`, which can be deleted at any time.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / ".ci"))

if sys.version_info < (3, 10):
    sys.exit(f"dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

import environment  # noqa: E402

PACK = "OmniGen2"
FIRST_TEMPLATE = "Try-it-text-to-image"
START_TIMEOUT = 300
TEST_PARTS = (["tests/browser"], ["tests/host"], ["tests", "--ignore=tests/browser", "--ignore=tests/host"])
# Fails in a Python that cannot run ComfyUI; says whether one that can has anything but its processor to compute on.
PROBE = "import torch, aiohttp, yaml, comfy_kitchen; print(getattr(torch, 'accelerator', torch.cuda).is_available())"
MODULES = {"parity": "omnigen2_core.parity", "score": "omnigen2_core.nano.score", "train": "omnigen2_core.nano.train",
           "presets": "omnigen2_core.nano.presets", "convert": "omnigen2_core.convert"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_parser = commands.add_parser("run", help="start ComfyUI with this pack")
    run_parser.add_argument("--comfyui", metavar="PATH", type=Path, help="use this ComfyUI; nothing is installed or changed in it")
    run_parser.add_argument("--port", type=port_number, default=8188, metavar="N", help="port to serve on (default 8188)")
    run_parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    run_parser.add_argument("--cpu", action="store_true", help="leave the graphics card alone")
    commands.add_parser("test", help="run the tests; further arguments go to pytest", add_help=False)
    commands.add_parser("bench", help="further arguments go to omnigen2_core.bench.command", add_help=False)
    for name, module in MODULES.items():
        commands.add_parser(name, help=f"further arguments go to {module}", add_help=False)

    options, rest = parser.parse_known_args(arguments)
    if options.command == "run":
        if rest:
            run_parser.error(f"unknown argument: {rest[0]}")
        return run(options)
    if options.command == "test":
        return test(rest)
    if options.command == "parity" and "--host" in rest:
        return host_parity([argument for argument in rest if argument != "--host"])
    if options.command == "bench":
        return bench(rest)
    environment.ensure_host()
    if options.command == "convert" or "--formats" in rest:
        environment.ensure_gguf()
    return call_module(MODULES[options.command], rest)


# ---- run

def port_number(text: str) -> int:
    """What `--port` takes."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give a number from 1 to 65535")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Start a server, say where it is, open the browser there, and stop it when asked to."""
    check_port(options.port)
    if options.comfyui is None:
        environment.ensure_host()
        make_base_folder(environment.BASE)
        command = [environment.python(), environment.LAUNCHER, environment.COMFYUI / "main.py",
                   "--base-directory", environment.BASE, "--disable-api-nodes", "--preview-method", "auto",
                   "--database-url", f"sqlite:///{(environment.BASE / 'comfyui.db').as_posix()}"]
        if options.cpu or not environment.has_gpu():
            # As in the bench: the attention that ComfyUI takes on a CPU by itself repeats keys and values.
            command += ["--cpu", "--use-pytorch-cross-attention"]
    else:
        command = existing_comfyui(options.comfyui.expanduser().resolve())
    if options.cpu and "--cpu" not in command:
        command.append("--cpu")
    command += ["--port", options.port]

    with tempfile.TemporaryDirectory(prefix="omnigen2-") as temporary:
        flags, source = pack_flags(Path(temporary), options.comfyui)
        return serve([str(part) for part in [*command, *flags]], address(options.port, source), not options.no_browser)


def make_base_folder(base: Path) -> None:
    """The folders that ComfyUI expects to find."""
    for name in ("models", "input", "output", "custom_nodes", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)


def existing_comfyui(comfyui: Path) -> list:
    """The command that starts the ComfyUI in this folder with a Python that has what it needs.

    Where that Python's torch knows no accelerator, ComfyUI is told so: it would stop for want of one.
    """
    if not (comfyui / "main.py").is_file():
        raise environment.SetupError(f"{comfyui} is not a ComfyUI folder: it has no main.py. Give the folder that holds main.py.")
    folders = [comfyui / "venv", comfyui / ".venv", comfyui.parent / "venv", comfyui.parent / ".venv"]
    folders += [Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    candidates = [environment.venv_python(folder) for folder in folders]
    candidates += [comfyui.parent / "python_embeded" / "python.exe", Path(sys.executable)]
    for python in candidates:
        if not python.is_file():
            continue
        probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
        if probe.returncode == 0:
            print(f"Using {python}")
            return [python, comfyui / "main.py", *([] if probe.stdout.split()[-1:] == ["True"] else ["--cpu"])]
    print(f"No Python with ComfyUI's requirements was found in or around {comfyui}; using the private one.")
    environment.ensure_host()
    return [environment.python(), environment.LAUNCHER, comfyui / "main.py", *([] if environment.has_gpu() else ["--cpu"])]


def pack_flags(temporary: Path, comfyui: Path | None) -> tuple[list, str]:
    """Options that make ComfyUI load this folder as a custom node, and the name it goes by there.

    ComfyUI imports every folder inside a custom node path. So the path is a temporary folder that
    holds a link to this one; where links cannot be made it is the folder above this one, with all
    others there switched off.
    """
    installed = [] if comfyui is None else [e for e in (comfyui / "custom_nodes").glob("*") if e.suffix != ".disabled"]
    for entry in installed:
        if entry.resolve() == ROOT:
            return [], entry.name
    config = temporary / "extra_model_paths.yaml"
    packs = temporary / "packs"
    packs.mkdir()
    flags = ["--extra-model-paths-config", config]
    name = PACK
    if not link_folder(packs / name, ROOT):
        packs, name = ROOT.parent, ROOT.name
        flags += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", name, *(entry.name for entry in installed)]
    # JSON is YAML, and quotes every path correctly.
    config.write_text(json.dumps({"omnigen2": {"custom_nodes": str(packs)}}, ensure_ascii=False), encoding="utf-8")
    return flags, name


def link_folder(link: Path, target: Path) -> bool:
    try:
        if os.name == "nt":
            import _winapi
            _winapi.CreateJunction(str(target), str(link))  # unlike a symbolic link, needs no privilege
        else:
            link.symlink_to(target, target_is_directory=True)
    except (OSError, AttributeError):
        return False
    return True


def address(port: int, source: str) -> str:
    plain = f"http://127.0.0.1:{port}/"
    if not (ROOT / "workflows" / f"{FIRST_TEMPLATE}.json").is_file():
        return plain
    # The frontend refuses other letters in this parameter.
    if not re.fullmatch(r"[a-zA-Z0-9_.-]+", source):
        print(f"The template is under Templates > Extensions > {source} > {FIRST_TEMPLATE}.")
        return plain
    return f"{plain}?template={FIRST_TEMPLATE}&source={source}"


def serve(command: list[str], url: str, open_browser: bool) -> int:
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop.set())
    # In a group of its own, so that Ctrl-C reaches the server once, from here.
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    server = subprocess.Popen(command, **group)
    deadline, ready = time.monotonic() + START_TIMEOUT, False
    while server.poll() is None and not stop.is_set():
        if not ready and answers(url):
            ready = True
            print(f"\nOmniGen2 is ready: {url}\nCtrl-C stops it.\n", flush=True)
            if open_browser:
                webbrowser.open(url)
        if not ready and time.monotonic() > deadline:
            print(f"The server did not answer within {START_TIMEOUT} s; its last lines above say why.", file=sys.stderr)
            break
        stop.wait(0.3)
    ended_by_itself = server.poll() is not None
    if not ended_by_itself:
        end(server)
    print("Stopped." if not ended_by_itself else f"The server ended by itself with status {server.returncode}; its last lines above say why.")
    return 0 if ready and not ended_by_itself or stop.is_set() else 1


def answers(url: str) -> bool:
    # A proxy that the machine is configured for does not know this machine's own address.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url.partition("?")[0] + "system_stats", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def end(server: subprocess.Popen) -> None:
    """Ask, then insist: the way Ctrl-C in the server's own window would, then by force."""
    server.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)
    for insist in (server.terminate, server.kill):
        try:
            server.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            insist()
    server.wait()


def check_port(port: int) -> None:
    """Raises SetupError where a server could not listen on this port."""
    with socket.socket() as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise environment.SetupError(f"This user may not serve on port {port}. Choose another, above 1023, with --port N.") from None
        except OSError:
            raise environment.SetupError(f"Port {port} is in use. Stop what uses it, or choose another with --port N.") from None


# ---- the others

def test(arguments: list[str]) -> int:
    environment.ensure_tests()
    command = [str(environment.python()), "-m", "pytest"]
    if arguments:
        return call([*command, *arguments], cwd=ROOT)
    return test_side_by_side([[*command, *part] for part in TEST_PARTS])


def test_side_by_side(commands: list[list[str]]) -> int:
    """Runs of pytest, two at a time: tests of pages and servers wait much, and others can use that time.

    Each has its share of the processor's cores. What passes is shown at once, what a run says at its end as one piece.
    """
    share = str(max(1, (os.cpu_count() or 1) // 2))
    threads = {name: os.environ.get(name, share) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    one_at_a_time = threading.Lock()

    def run_part(part: list[str]) -> int:
        process = subprocess.Popen(part, cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
        headings, closing = 0, []
        for line in process.stdout:
            # The first heading opens the run, the second begins what it says at its end.
            headings += line.startswith("=====")
            if headings > 1:
                closing.append(line)
                continue
            with one_at_a_time:
                print(line, end="", flush=True)
        with one_at_a_time:
            print("".join(closing), end="", flush=True)
        return process.wait()

    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        runs = [pool.submit(run_part, part) for part in commands]
        # Ctrl-C reaches the runs as well, and they are waited for: they have servers to stop.
        while True:
            try:
                return max(run.result() for run in runs)
            except KeyboardInterrupt:
                for run in runs:
                    run.cancel()
                runs = [run for run in runs if not run.cancelled()]


def host_parity(arguments: list[str]) -> int:
    """The same comparison, through the MODEL that the loader node gives to ComfyUI."""
    environment.ensure_host()
    return call([environment.python(), environment.LAUNCHER, ROOT / "tests" / "host" / "parity.py", *arguments])


def bench(arguments: list[str]) -> int:
    """Ours and ComfyUI's own model in one process."""
    environment.ensure_host()
    environment.ensure_gguf()
    return call([environment.python(), environment.LAUNCHER, ROOT / "tests" / "host" / "bench.py", *arguments])


def call_module(module: str, arguments: list[str]) -> int:
    return call([environment.python(), environment.LAUNCHER, "-m", module, *arguments])


def call(command: list, **options) -> int:
    """Run a command to its end and give its status.

    Ctrl-C reaches the command as well, and it is waited for: tests have servers to stop, training has a step to end.
    """
    process = subprocess.Popen([str(part) for part in command], **options)
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except environment.SetupError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit(130)
