"""Pictures that the nano model drew itself, right and wrong: what it learns to judge and to correct."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from ..guidance import Guidance
from . import wording as w
from .faults import corrections, find_faults
from .judge import Cell, look_at_cells
from .world import DEFAULT_SIZE, MAX_THINGS, Scene, Thing, draw_scene

logger = logging.getLogger(__name__)

BATCH = 48
MENDING = Guidance(text=1.0, image=1.0)
"""Guidance makes colours too strong where the steps are few; a correction does without."""
HARD_STEPS = 3
"""Sampling steps of what is hard to draw. With the model's own guidance one drawing then has 59 of 100 pictures of four things
right (seed 9); with two steps it is a quarter."""


@dataclass(frozen=True)
class Kinds:
    """What is drawn: of how many things and with how many steps a batch may be, and how corrections are guided.

    `prefix`: what the names of its files begin with.
    """

    things: Sequence[int]
    steps: Sequence[int]
    mending: Guidance | None
    prefix: str = ""


MIXED = Kinds(things=(1, 2, 3, 3, 4, 4, 4, 4), steps=(2, 2, 2, 2, 3, 3, 3, 4, 6, 12), mending=MENDING)
"""With few steps much goes wrong, in ways that are the model's own."""
HARD = Kinds(things=(MAX_THINGS,), steps=(HARD_STEPS,), mending=None, prefix="hard_")
"""As the reflection loop draws what its figures are measured with: corrections are guided as first drawings are."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture [96, 96, 3] uint8, the prompt that it was drawn for, what it should show, and what the judge sees in it."""

    prompt: str
    wanted: Scene
    pixels: np.ndarray
    ground: str | None
    cells: tuple[Cell, ...]


def scene_from_dict(values) -> Scene:
    """The inverse of `dataclasses.asdict`."""
    return Scene(values["ground"], tuple(Thing(**thing) for thing in values["things"]))


def cell_from_dict(values) -> Cell:
    """The inverse of `dataclasses.asdict`."""
    return Cell(values["thing"] and Thing(**values["thing"]), values["doubt"])


def draw_own(pipeline, folder: Path, count: int, seed: int, kinds: Kinds = MIXED) -> None:
    """Draws pictures for new prompts, mends the wrong ones as their faults ask, until there are `count`.

    Writes `SEED.npz` and `SEED.jsonl` into the folder, with the prefix before.
    """
    rng = random.Random(f"drawn {seed}")
    drawn: list[Drawn] = []
    while len(drawn) < count:
        scenes = [draw_scene(rng, rng.choice(kinds.things)) for _ in range(BATCH)]
        prompts = [w.describe(rng, scene) for scene in scenes]
        settings = {"size": DEFAULT_SIZE, "steps": rng.choice(kinds.steps)}
        first = _looked_at(prompts, scenes, pipeline.generate(prompts, seeds=_seeds(rng, BATCH), **settings))
        faults = [find_faults(d.wanted, d.ground, d.cells) for d in first]
        wrong = [(d, corrections(rng, own, plain=True)) for d, own in zip(first, faults) if own]
        drawn += first
        if wrong:
            pictures = pipeline.generate(
                [words for _, words in wrong],
                references=[[Image.fromarray(d.pixels)] for d, _ in wrong],
                seeds=_seeds(rng, len(wrong)),
                guidance=kinds.mending,
                **settings,
            )
            drawn += _looked_at([d.prompt for d, _ in wrong], [d.wanted for d, _ in wrong], pictures)
        logger.info("%d of %d pictures drawn", len(drawn), count)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{kinds.prefix}{seed}"
    np.savez_compressed(folder / f"{name}.npz", pictures=np.stack([d.pixels for d in drawn]))
    rows = [
        {"prompt": d.prompt, "wanted": asdict(d.wanted), "ground": d.ground, "cells": [asdict(cell) for cell in d.cells]} for d in drawn
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _seeds(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(2**31) for _ in range(count)]


def _looked_at(prompts: Sequence[str], scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> list[Drawn]:
    pixels = [np.asarray(picture) for picture in pictures]
    return [Drawn(prompt, scene, own, *look_at_cells(own)) for prompt, scene, own in zip(prompts, scenes, pixels)]


def load_own(folder: Path) -> Sequence[Drawn]:
    """All pictures of a folder that `draw_own` wrote."""
    drawn = []
    for file in sorted(folder.glob("*.npz")):
        rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        with np.load(file) as arrays:
            drawn += [
                Drawn(row["prompt"], scene_from_dict(row["wanted"]), picture, row["ground"], tuple(map(cell_from_dict, row["cells"])))
                for row, picture in zip(rows, arrays["pictures"])
            ]
    return drawn
