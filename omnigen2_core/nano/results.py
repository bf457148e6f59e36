"""What a search has found so far: a file to which every batch is added as soon as it is drawn.

The first line says what was searched, each other one is a batch. A line that an ending session left unfinished is
dropped, so a search can be stopped at any time and goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Mapping

import torch

from ..checkpoints import PARTS, ModelFolder
from ..errors import OmniGen2Error
from ..profile import ModelProfile

_SAMPLE = 256
"""Values at either end of a tensor that tell it from another."""


@dataclass(frozen=True)
class Header:
    """What results must have in common to be compared: the model, its guidance, and which problems were drawn."""

    model: str
    weights: str
    text_guidance: float
    image_guidance: float
    guidance_end: float
    seed: int

    @classmethod
    def of(cls, folder: ModelFolder, seed: int) -> "Header":
        """For a model folder at the settings that suit it."""
        profile: ModelProfile = folder.profile
        guidance = (profile.text_guidance, profile.image_guidance, profile.guidance_end)
        return cls(profile.name, fingerprint(folder), *guidance, seed)


def fingerprint(folder: ModelFolder) -> str:
    """A short text that other weights would change: from both ends of every tensor that drawing depends on.

    The encoder's vision tower is none: a prompt to draw from is text alone.
    """
    digest = hashlib.sha256()
    for part in PARTS:
        for name, tensor in sorted(folder.state_dict(part).items()):
            if name.removeprefix("model.").startswith("visual."):
                continue
            flat = tensor.reshape(-1)
            digest.update(f"{part} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for end in (flat[:_SAMPLE], flat[-_SAMPLE:]):
                digest.update(end.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """Problems of one kind that were drawn together.

    Attributes:
        candidate, world, kind: As text. references: How many each problem of the kind has.
        start: Number of the first problem.
        right: "1" for each right picture, "0" for each wrong one.
        psnr: dB of each picture against that of the plain path; empty where that was not at hand.
        pattern: What was computed, see `acceleration.pattern`.
        seconds: For drawing and judging all, on a machine that may have done other things beside it.
    """

    candidate: str
    world: str
    kind: str
    references: int
    start: int
    right: str
    psnr: tuple[float, ...]
    pattern: Mapping[str, str]
    seconds: float


class Results:
    """The batches of the file `path`, which is begun where it is not there.

    Raises OmniGen2Error for a file that something else was searched for, or that is none of results.
    """

    def __init__(self, path: Path, header: Header):
        self.path, self.header = path, header
        self._batches: dict[tuple[str, str, str], dict[int, Batch]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            self._write(asdict(header))
            return
        first, rows = _read(path)
        if first != asdict(header):
            other = [name for name, value in asdict(header).items() if first.get(name) != value]
            raise OmniGen2Error(f"{path} holds results with another {' and '.join(other)}; give another file, or remove it.")
        for row in rows:
            self._keep(Batch(**{**row, "psnr": tuple(row["psnr"])}))

    def add(self, batch: Batch) -> None:
        """Keeps a batch, in the file too."""
        self._keep(batch)
        self._write(asdict(batch))

    def batches(self, candidate: str, world: str, kind: str) -> list[Batch]:
        """What was drawn, in order."""
        return [batch for _, batch in sorted(self._batches.get((candidate, world, kind), {}).items())]

    def kinds(self, world: str) -> dict[str, int]:
        """The kinds of a world of which there is something, by their number of references."""
        some = [next(iter(batches.values())) for key, batches in self._batches.items() if key[1] == world]
        return dict(sorted(((batch.kind, batch.references) for batch in some), key=lambda pair: pair[1]))

    def worlds(self) -> list[str]:
        """In the order in which they were begun."""
        return list(dict.fromkeys(world for _, world, _ in self._batches))

    def candidates(self, world: str) -> list[str]:
        """Those of a world, in the order in which they were begun."""
        return list(dict.fromkeys(candidate for candidate, of, _ in self._batches if of == world))

    def _keep(self, batch: Batch) -> None:
        self._batches.setdefault((batch.candidate, batch.world, batch.kind), {})[batch.start] = batch

    def _write(self, row: Mapping) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _read(path: Path) -> tuple[dict, list[dict]]:
    """The first line and all others; an unfinished last one is taken off the file."""
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    try:
        first, *rows = [json.loads(line) for line in text.splitlines()]
    except ValueError:
        raise OmniGen2Error(f"{path} is no file of results; give another name.") from None
    return first, rows
