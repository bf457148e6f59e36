"""Teaching the nano encoder's vision tower to see: what each of its tokens shows, in pictures right and wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Callable, ClassVar, Mapping, Sequence

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
from .judge import MARGINS, Cell, examine_cell, look_at_cell
from .world import COLOURS, DEFAULT_SIZE, PLACES, SHAPES, SIZES, Scene, cell_box, coverage, draw_scene, render

RECIPE = Recipe(
    steps=600, learning_rate=2e-3, muon_learning_rate=4e-3, warmup=30, decay=0.6, ema=0.99, bf16=False, save_every=100
)
SEEN = {"ground": len(COLOURS) + 1, "colour": len(COLOURS) + 2, "shape": len(SHAPES) + 2, "size": len(SIZES) + 2}
"""Classes of what a visual token shows: the ground's colours or none, a thing's attributes, no thing, or an unclear one."""
FAR, NEAR = 1.5, 0.1
"""Margins beyond the first are all the same; errors of margins below the second count by their square."""
PLAIN = 3.0
"""What the mean square error of a tower's tokens against plain ones, as a share of these ones' variance, counts in the loss."""
READING = ("qkv", "gate_proj", "up_proj", "merger.mlp.0")
"""Matrices of a layer that read its input; the others write."""
NEW_CHANNELS = 0.3
"""Size of a wider tower's new filters, of that of those it has."""


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

    @cached_property
    def margins(self) -> np.ndarray:
        """For each visual token of a picture of the default size the judge's `MARGINS` [36, M], NaN where there are none."""
        if self.ground is None:
            return np.full((36, len(MARGINS)), np.nan, np.float32)
        rows = np.stack([examine_cell(self.pixels, place, self.ground)[1] for place in range(len(PLACES))])
        return rows.reshape(3, 3, -1).repeat(2, 0).repeat(2, 1).reshape(36, -1).astype(np.float32)

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
        self.margins = nn.Linear(width, len(MARGINS))
        self.placed, self.found = (nn.Linear(width, len(PLACES)) for _ in range(2))
        self.compared = nn.ModuleDict({"cell": nn.Linear(width, 2), "thing": nn.Linear(width, 2)})

    def seeing_loss(self, visual: Tensor, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        """Of visual tokens [views * 36, D] of pictures of the default size: the loss, and which are seen right [views * 36].

        A class says no more than on which side of its limits a cell lies. By how much is what it is to be told from.
        """
        wanted = torch.tensor([row for view in views for row in view.classes()])
        loss, right = 0.0, torch.ones(len(wanted), dtype=torch.bool)
        for i, head in enumerate(self.seen.values()):
            logits = head(visual)
            loss = loss + F.cross_entropy(logits, wanted[:, i])
            right &= logits.argmax(-1) == wanted[:, i]
        margins = torch.from_numpy(np.concatenate([view.margins for view in views])).clamp(-FAR, FAR)
        if (known := ~margins.isnan()).any():
            loss = loss + F.smooth_l1_loss(self.margins(visual)[known], margins[known], beta=NEAR)
        return loss, right


def fit_heads(eyes: Eyes, model: Qwen2_5_VL, views: Sequence[View], steps: int = 200) -> None:
    """Fits the heads that read what tokens show to a tower that is left as it is."""
    values, grid = preprocess([Image.fromarray(view.pixels) for view in views], PIXELS)
    with torch.no_grad():
        visual = model.look(values, grid)
    optimizer = torch.optim.Adam([*eyes.seen.parameters(), *eyes.margins.parameters()], lr=0.03)
    for _ in range(steps):
        loss, _ = eyes.seeing_loss(visual, views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def all_right(right: Tensor) -> float:
    """Share of pictures of the default size of which all tokens are right, of [views * 36]."""
    return right.view(-1, 36).all(dim=1).float().mean().item()


def faults_of(wanted: Scene, view: View):
    """The faults that the judge finds."""
    return find_faults(wanted, view.ground, view.cells)


class Patchwork:
    """Pictures put together of single cells of the model's own, each in its place, mirrored or not.

    A cell is judged by itself and every shape is its own mirror image, so there are far more of these than pictures. In
    some cells what is not as it should be is made weaker or stronger, and judged anew: what tells right from wrong is
    learnt at the edge between them.
    """

    BUSY = 0.9
    """Share of cells that are chosen among those that are not empty: an empty cell teaches next to nothing, and takes as long
    to look at as one at the edge between right and wrong."""
    EXAGGERATED = 0.35
    """Share of cells with a thing whose faults are changed."""
    FACTORS = (0.4, 2.0)
    """By how much."""

    def __init__(self, drawn: Sequence[Drawn]):
        self.places = range(len(PLACES))
        self.grounds: dict[str, list[Drawn]] = {}
        for picture in drawn:
            if picture.ground and picture.pixels.shape[:2] == DEFAULT_SIZE:
                self.grounds.setdefault(picture.ground, []).append(picture)
        self.busy = self._by_place(lambda picture, place: picture.cells[place] != Cell(None))
        self.asked = self._by_place(lambda picture, place: place in _places(picture.wanted))
        self.empty = self._by_place(lambda picture, place: place not in _places(picture.wanted))

    def _by_place(self, chosen: Callable[[Drawn, int], bool]) -> dict[str, list[list[Drawn]]]:
        return {
            ground: [[d for d in pictures if chosen(d, place)] or pictures for place in self.places]
            for ground, pictures in self.grounds.items()
        }

    def view(self, rng: random.Random) -> View:
        """A picture and what the judge sees in it."""
        ground = rng.choice(list(self.grounds))
        sources = [self.busy[ground][p] if rng.random() < self.BUSY else self.grounds[ground] for p in self.places]
        return self._compose(rng, ground, [rng.choice(source) for source in sources])

    def judged(self, rng: random.Random, count: int) -> tuple[Scene, View]:
        """What was wanted, about `count` things, and a picture for it."""
        ground = rng.choice(list(self.grounds))
        taken = set(rng.sample(self.places, count))
        chosen, things = [], []
        for place in self.places:
            picture = rng.choice((self.asked if place in taken else self.empty)[ground][place])
            thing = next((t for t in picture.wanted.things if t.place == place), None)
            # No scene has two things of one colour and shape.
            if thing and any((t.colour, t.shape) == (thing.colour, thing.shape) for t in things):
                picture, thing = rng.choice(self.empty[ground][place]), None
            things += [thing] if thing else []
            chosen.append(picture)
        return Scene(ground, tuple(things)), self._compose(rng, ground, chosen)

    def _compose(self, rng: random.Random, ground: str, chosen: Sequence[Drawn]) -> View:
        pixels, cells = np.empty((*DEFAULT_SIZE, 3), np.uint8), []
        for place, picture in enumerate(chosen):
            left, top, right, bottom = cell_box(place, *DEFAULT_SIZE[::-1])
            cell = picture.pixels[top:bottom, left:right][:, :: rng.choice((1, -1))]
            if picture.cells[place] != Cell(None) and rng.random() < self.EXAGGERATED:
                thing = picture.cells[place].thing or next((t for t in picture.wanted.things if t.place == place), None)
                clear = np.asarray(COLOURS[ground], np.float32)
                if thing:
                    alpha = coverage(thing.shape, thing.size, place, *DEFAULT_SIZE)[..., None]
                    clear = clear + alpha * (np.asarray(COLOURS[thing.colour], np.float32) - clear)
                cell = np.clip(np.round(clear + rng.uniform(*self.FACTORS) * (cell - clear)), 0, 255)
                pixels[top:bottom, left:right] = cell
                cells.append(look_at_cell(pixels, place, ground))
            else:
                pixels[top:bottom, left:right] = cell
                cells.append(picture.cells[place])
        return View(pixels, ground, tuple(cells))


def _places(scene: Scene) -> set[int]:
    return {thing.place for thing in scene.things}


class Views:
    """What was wanted and a picture for it, right or wrong: drawn by the model itself, put together of such, or made up."""

    def __init__(self, drawn: Sequence[Drawn]):
        self.drawn = drawn
        self.faulty = [d for d in drawn if find_faults(d.wanted, d.ground, d.cells)]
        self.right = [d for d in drawn if not find_faults(d.wanted, d.ground, d.cells)]
        self.patchwork = Patchwork(drawn) if drawn else None

    def judged(self, rng: random.Random, things: int) -> tuple[Scene, View]:
        """A wanted scene, of `things` things unless the model drew the picture, and a picture."""
        chance = rng.random()
        if self.drawn and chance < 0.35:
            picture = rng.choice(self.faulty if rng.random() < 0.5 else self.drawn)
            return picture.wanted, View.of_drawn(picture)
        if self.drawn and chance < 0.7:
            return self.patchwork.judged(rng, things)
        wanted = draw_scene(rng, things)
        return wanted, View.of_spoiled(draw_spoiled(rng, wanted))


class Sights:
    """Pictures alone, for the vision tower. They are many, so each process draws only its own, by a chance of its own."""

    CROWDED = 0.6
    """Share of patchworks with a thing in nearly every cell."""

    def __init__(self, drawn: Sequence[Drawn], batch: int = 64, rank: int = 0, workers: int = 1):
        self.views, self.seeds, self.mine = Views(drawn), batch, slice(rank, None, workers)

    def batch(self, step: int, rng: random.Random) -> list[Sight]:
        seeds = [rng.random() for _ in range(self.seeds)]
        chances = [random.Random(seed) for seed in seeds[self.mine]]
        views = [self._view(rng) for rng in chances]
        return [Sight(views, len(views) / len(seeds))]

    def _view(self, rng: random.Random) -> View:
        if self.views.patchwork and rng.random() < self.CROWDED:
            return self.views.patchwork.view(rng)
        return self.views.judged(rng, rng.randint(1, 6))[1]


@dataclass(frozen=True)
class Sight:
    """Pictures, and what share of the step's these are."""

    views: Sequence[View]
    share: float = 1.0
    kind: ClassVar[str] = "sight"


class Plain:
    """What a vision tower's tokens would be if it passed on what the judge sees, and nothing else.

    A text model that knows a tower makes mistakes where its tokens lie between those of clear things. It makes none
    where they are those of the clear picture of what is there, and one and the same for whatever is not clear: the
    mean of the tokens that this tower has for it.

    Args:
        tower: The tower that the text model knows.
        views: Pictures of the default size, with unclear cells at every place.
    """

    def __init__(self, tower: Qwen2_5_VL, views: Sequence[View]):
        self.tower = tower
        tokens, unclear = self._look([view.pixels for view in views]), self._unclear(views).unsqueeze(-1)
        self.unclear = (tokens * unclear).sum(0) / unclear.sum(0)

    def tokens(self, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        """Of pictures of the default size: tokens [views * 36, D], and which of them there are, by whether the ground is known."""
        clear = [Scene(view.ground or "white", tuple(cell.thing for cell in view.cells if cell.thing)) for view in views]
        tokens = self._look([render(scene, *DEFAULT_SIZE) for scene in clear])
        known = torch.tensor([view.ground is not None for view in views])
        plain = torch.where(self._unclear(views).unsqueeze(-1), self.unclear, tokens)
        return plain.flatten(0, 1), known.repeat_interleave(plain.shape[1])

    @torch.no_grad()
    def _look(self, pictures: Sequence[np.ndarray]) -> Tensor:
        tokens = self.tower.look(*preprocess([Image.fromarray(pixels) for pixels in pictures], PIXELS))
        return tokens.float().unflatten(0, (len(pictures), -1))

    @staticmethod
    def _unclear(views: Sequence[View]) -> Tensor:
        """[views, 36] bool."""
        cells = torch.tensor([[bool(cell.doubt) for cell in view.cells] for view in views])
        return cells.view(-1, 3, 3).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)


def seeing_loss(model: Qwen2_5_VL, eyes: Eyes, plain: Plain | None = None):
    """What the vision tower's tokens tell of their cells; with `plain` also how far they are from being these."""

    def loss(sight: Sight, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        visual = model.look(*preprocess([Image.fromarray(view.pixels) for view in sight.views], PIXELS))
        seen, right = eyes.seeing_loss(visual, sight.views)
        figures = {"seeing": seen.item(), "seen_right": all_right(right)}
        if plain is not None:
            wanted, known = plain.tokens(sight.views)
            spread = (wanted - wanted.mean(0)).square().mean()
            unlike = ((visual - wanted).square().mean(-1) * known).mean() / spread
            seen = seen + PLAIN * unlike
            figures["unlike_plain"] = unlike.item()
        return seen * sight.share, figures

    return loss


def widened(weights: Mapping[str, Tensor], tower: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """A vision tower's weights, for a tower of the same depth and head size that is wider.

    What is new of a layer reads everything and is read by what is new alone, so that at first the wide tower tells
    what the narrow one did, up to what new channels add to the norms.

    Args:
        weights: The narrow tower's, by their names in `Qwen2_5_VL.visual`.
        tower: The wide one's, of which only the shapes are used.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = {}
    for name, old in weights.items():
        shape = tower[name].shape
        if shape == old.shape:
            wide[name] = old
            continue
        rows = _blocks(len(old), shape[0], 3 if ".qkv." in name else 1)
        new = torch.zeros(shape)
        if "norm" in name or "ln_q" in name:
            # The same sum of squares is a smaller mean among more channels.
            new.fill_(old.mean())
            new[rows] = old
            new *= (len(old) / shape[0]) ** 0.5
        elif new.ndim == 1:
            new[rows] = old
        elif new.ndim > 2:
            new.normal_(0, NEW_CHANNELS * old.std().item(), generator=generator)
            new[rows] = old
        else:
            if any(part in name for part in READING):
                new.normal_(0, shape[1] ** -0.5, generator=generator)
            columns = _blocks(old.shape[1], shape[1], 4 if "merger.mlp.0" in name else 1)
            new[rows] = 0
            new[rows.unsqueeze(1), columns] = old
        wide[name] = new
    return wide


def _blocks(old: int, new: int, count: int) -> Tensor:
    """Where the indices of `count` equal blocks come when each block grows at its end."""
    return torch.cat([block * (new // count) + torch.arange(old // count) for block in range(count)])
