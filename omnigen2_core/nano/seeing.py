"""Teaching the nano encoder's vision tower to see: what each of its tokens shows, in pictures right and wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..mllm import Qwen2_5_VL
from ..training import Recipe
from ..vision import preprocess
from .drawn import Drawn
from .encoder import PIXELS, WIDTH
from .faults import Spoiled, cells_of, draw_spoiled, find_faults, render_spoiled
from .judge import Cell
from .world import COLOURS, DEFAULT_SIZE, PLACES, SHAPES, SIZES, Scene, cell_box, draw_scene, render

RECIPE = Recipe(
    steps=600, learning_rate=2e-3, muon_learning_rate=4e-3, warmup=30, decay=0.6, ema=0.99, bf16=False, save_every=100
)
SEEN = {"ground": len(COLOURS) + 1, "colour": len(COLOURS) + 2, "shape": len(SHAPES) + 2, "size": len(SIZES) + 2}
"""Classes of what a visual token shows: the ground's colours or none, a thing's attributes, no thing, or an unclear one."""


@dataclass(frozen=True)
class View:
    """A picture and what the judge sees in it."""

    pixels: np.ndarray
    ground: str | None
    cells: tuple[Cell, ...]

    @classmethod
    def of_scene(cls, scene: Scene, size: tuple[int, int] = DEFAULT_SIZE) -> "View":
        things = {thing.place: thing for thing in scene.things}
        return cls(render(scene, *size), scene.ground, tuple(Cell(things.get(place)) for place in range(len(PLACES))))

    @classmethod
    def of_spoiled(cls, spoiled: Spoiled) -> "View":
        pixels = render_spoiled(spoiled, *DEFAULT_SIZE)
        return cls(pixels, spoiled.scene.ground, cells_of(spoiled, pixels))

    @classmethod
    def of_drawn(cls, drawn: Drawn) -> "View":
        return cls(drawn.pixels, drawn.ground, drawn.cells)

    def classes(self) -> list[list[int]]:
        """For each visual token of a picture of the default size its class for each name of SEEN, in order."""
        ground = [*COLOURS, None].index(self.ground)
        rows = []
        for cell in self.cells:
            thing, unclear = cell.thing, bool(cell.doubt)
            given = (None, None, None) if thing is None else (thing.colour, thing.shape, thing.size)
            options = (list(COLOURS), list(SHAPES), list(SIZES))
            own = [len(o) + unclear if g is None else o.index(g) for g, o in zip(given, options)]
            rows.append([ground, *own])
        side = 2 * 3
        return [rows[y // 2 * 3 + x // 2] for y in range(side) for x in range(side)]


class Eyes(nn.Module):
    """Reads from visual tokens what they show, and from states where they are and how they compare. For training only."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.seen = nn.ModuleDict({name: nn.Linear(width, count) for name, count in SEEN.items()})
        self.placed = nn.Linear(width, len(PLACES))
        self.compared = nn.ModuleDict({"cell": nn.Linear(width, 2), "thing": nn.Linear(width, 2)})

    def seeing_loss(self, visual: Tensor, views: Sequence[View]) -> tuple[Tensor, Mapping[str, float]]:
        """Of visual tokens [views * 36, D] of pictures of the default size."""
        wanted = torch.tensor([row for view in views for row in view.classes()])
        loss, right = 0.0, torch.ones(len(wanted), dtype=torch.bool)
        for i, head in enumerate(self.seen.values()):
            logits = head(visual)
            loss = loss + F.cross_entropy(logits, wanted[:, i])
            right &= logits.argmax(-1) == wanted[:, i]
        return loss, {"seeing": loss.item(), "seen_right": right.view(len(views), -1).all(dim=1).float().mean().item()}


def view_of(rng: random.Random, drawn: Sequence[Drawn], faulty: Sequence[Drawn], things: int) -> tuple[Scene, View]:
    """What was wanted and a picture for it, right or wrong: drawn by the model itself, or made up."""
    if drawn and rng.random() < 0.5:
        picture = rng.choice(faulty if rng.random() < 0.5 else drawn)
        return picture.wanted, View.of_drawn(picture)
    wanted = draw_scene(rng, things)
    return wanted, View.of_spoiled(draw_spoiled(rng, wanted))


def faults_of(wanted: Scene, view: View):
    """The faults that the judge finds."""
    return find_faults(wanted, view.ground, view.cells)


class Patchwork:
    """Pictures put together of single cells of the model's own, each in its place, mirrored or not.

    A cell is judged by itself and every shape is its own mirror image, so there are far more of these than pictures.
    """

    BUSY = 0.4
    """Share of cells that are chosen among those that are not empty."""

    def __init__(self, drawn: Sequence[Drawn]):
        self.places = range(len(PLACES))
        self.grounds: dict[str, list[Drawn]] = {}
        for picture in drawn:
            if picture.ground and picture.pixels.shape[:2] == DEFAULT_SIZE:
                self.grounds.setdefault(picture.ground, []).append(picture)
        self.busy = {
            ground: [[d for d in pictures if d.cells[place] != Cell(None)] or pictures for place in self.places]
            for ground, pictures in self.grounds.items()
        }

    def view(self, rng: random.Random) -> View:
        """A picture and what the judge sees in it."""
        ground = rng.choice(list(self.grounds))
        pixels, cells = np.empty((*DEFAULT_SIZE, 3), np.uint8), []
        for place in self.places:
            chosen = rng.choice(self.busy[ground][place] if rng.random() < self.BUSY else self.grounds[ground])
            left, top, right, bottom = cell_box(place, *DEFAULT_SIZE[::-1])
            pixels[top:bottom, left:right] = chosen.pixels[top:bottom, left:right][:, :: rng.choice((1, -1))]
            cells.append(chosen.cells[place])
        return View(pixels, ground, tuple(cells))


class Sights:
    """Pictures alone, for the vision tower."""

    def __init__(self, drawn: Sequence[Drawn], batch: int = 64):
        self.drawn, self.count = drawn, batch
        self.faulty = [d for d in drawn if find_faults(d.wanted, d.ground, d.cells)]

    def batch(self, step: int, rng: random.Random) -> list[list[View]]:
        return [[view_of(rng, self.drawn, self.faulty, rng.randint(1, 6))[1] for _ in range(self.count)]]


def seeing_loss(model: Qwen2_5_VL, eyes: Eyes):
    """What the vision tower's tokens tell of their cells."""

    def loss(views: Sequence[View], generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        values, grid = preprocess([Image.fromarray(view.pixels) for view in views], PIXELS)
        return eyes.seeing_loss(model.look(values, grid), views)

    return loss
