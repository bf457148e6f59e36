"""From click to the first model call, on a real server, against the time that reading the files takes."""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from ..checkpoints import FileKind
from ..checkpoints.published import PUBLISHED_MLLM, PUBLISHED_TRANSFORMER, PUBLISHED_VAE
from ..errors import OmniGen2Error
from .full_size import PLAIN, write_sparse
from .results import Claim, Results
from .runs import node
from .verdict import Bar, estimate

BAR = Bar(1.3, at_most=True)
ROUNDS = 5
PIECE = 1 << 24
"""Bytes that are read or written at once."""
COLD = 1.2
"""A read counts as one from the disk where it takes so many times as long as one from the system's cache."""
FREED_SECONDS = 60
_EVENTS = {
    "encoder": "the encoder model's first call",
    "encoded": "the end of that call",
    "diffusion": "the diffusion model's first call",
}
"""What is waited for, by the name that the probe notes it under."""
_FOLDERS = {FileKind.DIT: "diffusion_models", FileKind.ENCODER: "text_encoders", FileKind.VAE: "vae"}
CONFIGS = {
    FileKind.DIT: PUBLISHED_TRANSFORMER | {"num_layers": 3, "num_refiner_layers": 1},
    FileKind.ENCODER: PUBLISHED_MLLM
    | {"num_hidden_layers": 3, "vision_config": PUBLISHED_MLLM["vision_config"] | {"depth": 2, "fullatt_block_indexes": [1]}},
    FileKind.VAE: PUBLISHED_VAE,
}
"""The published widths with fewer layers, so that the files fit a small machine."""


def measure(host: ModuleType, results: Results, *, on_card: bool = False, rounds: int = ROUNDS, configs=CONFIGS) -> None:
    """Adds the ratio of click to reading with a warm file cache and, where the system can be made to forget, a cold one."""
    flags = [] if on_card else ["--cpu"]
    with tempfile.TemporaryDirectory(prefix="omnigen2-", ignore_cleanup_errors=True) as folder:
        server = host.server(Path(folder), *flags, probes=host.FIRST_CALL)
        files = _write(server.base / "models", configs)
        size = sum(file.stat().st_size for file in files) / 1e9
        caches = ("warm", "cold") if _can_forget() else ("warm",)
        seconds: dict[str, dict[str, list[float]]] = {
            cache: {"read": [], **{name: [] for name in _EVENTS}} for cache in caches
        }
        with server:
            # What is imported and built once a session is not part of a click.
            noted = server.base / "first"
            _click(server, _prompt(noted, files))
            for number in range(rounds):
                for cache, found in seconds.items():
                    for what in ("read", "click") if number % 2 == 0 else ("click", "read"):
                        _free(server, noted)
                        _prepare(files, cache)
                        if what == "read":
                            found["read"].append(_read(files))
                            continue
                        noted = server.base / f"{cache}-{number}"
                        for name, when in _click(server, _prompt(noted, files)).items():
                            found[name].append(when)
        _report(seconds, size, results)


def _report(seconds: dict[str, dict[str, list[float]]], size: float, results: Results) -> None:
    reads = {cache: sorted(found["read"])[len(found["read"]) // 2] for cache, found in seconds.items()}
    for cache, found in seconds.items():
        if cache == "cold" and reads["cold"] < COLD * reads["warm"]:
            results.notes.append(
                f"From click, cold file cache: not measured. Reading takes {reads['cold']:.2f} s after the system was asked "
                f"to forget the files and {reads['warm']:.2f} s from its cache, so it has not forgotten them."
            )
            continue
        for name, event in _EVENTS.items():
            bar = BAR if name == "encoder" else None
            what = f"{size:.1f} GB, {cache} file cache: from click to {event}, against reading the files"
            ratio = estimate([found], lambda medians, name=name: medians[name] / medians["read"])
            results.claims.append(Claim.judged(what, ratio, bar))
        middle = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
        results.notes.append(
            f"{cache.capitalize()} file cache, medians of {len(found['read'])} rounds: reading {middle['read']:.2f} s; click to "
            + ", ".join(f"{event} {middle[name]:.2f} s" for name, event in _EVENTS.items())
            + "."
        )
    if "cold" not in seconds:
        results.notes.append("From click, cold file cache: not measured; this system cannot be asked to forget files.")
    results.notes.append(
        "From click: the published widths with fewer layers, drawn weights in bf16, single files through this pack's "
        "loaders, on a server that has drawn a picture before and was told to free its models. Click is when the prompt is "
        "sent. The first model call is the encoder's, which all files are loaded before; where weights stay in the mapped "
        "file, they are read as the model first uses them. Until the diffusion model's call, two prompts are encoded, which "
        "is computing for the most part."
    )


def _write(models: Path, configs) -> list[Path]:
    block = torch.randn(PIECE // 2, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    values, files = block.view(torch.uint8).numpy().data, []
    for kind, config in configs.items():
        folder = models / _FOLDERS[kind]
        folder.mkdir(parents=True, exist_ok=True)
        path = write_sparse(folder, kind, PLAIN, config)
        end = path.stat().st_size
        with path.open("r+b") as file:
            (head,) = struct.unpack("<Q", file.read(8))
            for at in range(8 + head, end, PIECE):
                file.seek(at)
                file.write(values[: end - at])
            file.flush()
            os.fsync(file.fileno())
        files.append(path)
    return files


def _prompt(noted: Path, files: Sequence[Path]) -> tuple[dict, Path]:
    """A text to image run that ends at the diffusion model's first call, and the file where calls are noted."""
    names = dict(zip(("unet_name", "text_encoder", "vae_name"), (path.name for path in files)))
    nodes = {
        "model": node("OmniGen2LoadDiffusionModel", unet_name=names["unet_name"], dtype="auto"),
        "clip": node("OmniGen2LoadEncoder", text_encoder=names["text_encoder"], dtype="auto"),
        "vae": node("OmniGen2LoadVAE", vae_name=names["vae_name"]),
        "watch": node("BenchFirstCall", model=["model", 0], clip=["clip", 0], file=str(noted)),
        "encode": node(
            "OmniGen2Encode", clip=["watch", 1], vae=["vae", 0], prompt="a lighthouse", negative_prompt="", width=256,
            height=256, match_reference=False, max_pixels=0, max_side=0, encoder_sees_images=False, batch_size=1,
        ),
        "sample": node(
            "OmniGen2Sample", model=["watch", 0], positive=["encode", 0], latent=["encode", 3], negative_ref=["encode", 1],
            negative=["encode", 2], seed=0, steps=1, solver="euler", text_guidance=5.0, image_guidance=2.0,
            guidance_start=0.0, guidance_end=1.0, shift="auto", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "preview": node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip
    return nodes, noted


def _click(server, prompt: tuple[dict, Path]) -> dict[str, float]:
    """Seconds from when the prompt is sent to the first of each of `_EVENTS`."""
    nodes, noted = prompt
    clicked = time.time()
    server.run(nodes)
    found: dict[str, float] = {}
    for line in noted.read_text(encoding="utf-8").splitlines():
        name, when = line.split()
        found.setdefault(name, float(when) - clicked)
    return {name: found[name] for name in _EVENTS}


def _free(server, noted: Path) -> None:
    """Has the server drop its models and results, and waits until it has those of the click with notes in `noted`.

    Raises OmniGen2Error where it keeps them: a click that follows would load nothing.
    """
    deadline = time.monotonic() + FREED_SECONDS
    while noted.read_text(encoding="utf-8").count("dropped") < 2:
        if time.monotonic() > deadline:
            raise OmniGen2Error(f"the server has kept its models for {FREED_SECONDS} s after it was told to free them")
        # ComfyUI does not hear it where it is between two prompts just then.
        server.ask("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1)
    # Weights go after the module that held them, and the system forgets no file that is mapped.
    time.sleep(0.5)


def _can_forget() -> bool:
    return hasattr(os, "posix_fadvise")


def _prepare(files: Sequence[Path], cache: str) -> None:
    """Has the system hold the files in its cache ("warm") or forget them ("cold")."""
    if cache == "warm":
        _read(files)
        return
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(files: Sequence[Path]) -> float:
    """Seconds that it takes to read the files from one end to the other."""
    buffer, started = bytearray(PIECE), time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started
