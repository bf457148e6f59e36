"""Reads a scene back from a picture's pixels, and decides whether it is what was wanted.

The judge knows the world's colours, shapes, sizes and places, and nothing of how a picture came about. It compares
every cell with every thing that could be there and accepts the best only where picture and thing agree closely.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Sequence

import numpy as np

from .questions import fits
from .world import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing, cell_box, coverage

CELL_TOLERANCE = 0.11
"""Largest root mean square difference, on a 0..1 scale, between a cell and what it is taken for."""
COLOUR_TOLERANCE = 0.12
"""Largest distance per channel between an area's mean colour and the colour it is taken for."""
UNEXPLAINED = 0.2
"""Largest share of what makes a thing stand out from the ground that may be missing or too much."""
PRESERVED_TOLERANCE = 0.05
"""Largest mean absolute difference between a cell that should stay and its source."""

_NAMES = list(COLOURS)
_VALUES = np.array([COLOURS[name] for name in _NAMES], np.float32) / 255


@dataclass(frozen=True)
class Sight:
    """What the judge sees: the scene, and `doubt`, an explanation where no scene of the world fits the pixels."""

    scene: Scene | None
    doubt: str = ""


@lru_cache(maxsize=None)
def _gap_mask(width: int, height: int) -> np.ndarray:
    """Pixels that no thing can reach, [height, width] bool."""
    mask = np.ones((height, width), bool)
    for place in range(len(PLACES)):
        left, top, right, bottom = cell_box(place, width, height)
        for shape in SHAPES:
            mask[top:bottom, left:right] &= coverage(shape, "large", place, width, height) == 0
    return mask


@lru_cache(maxsize=None)
def _candidates(place: int, width: int, height: int) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Shape and size of each possible thing with its coverage, [N, pixels of the cell]."""
    kinds = [(shape, size) for shape in SHAPES for size in SIZES]
    return kinds, np.stack([coverage(*kind, place, width, height).ravel() for kind in kinds])


@dataclass(frozen=True)
class Cell:
    """What the judge sees at one place: a thing, nothing (no thing and no doubt), or something that it doubts."""

    thing: Thing | None
    doubt: str = ""


def look_at_cells(picture: np.ndarray) -> tuple[str | None, tuple[Cell, ...]]:
    """The ground of a picture [height, width, 3] uint8, None where it has none of the world's, and its nine cells."""
    nearest, found = _look_at_ground(picture)
    return (nearest if found else None), tuple(look_at_cell(picture, place, nearest) for place in range(len(PLACES)))


def ground_of(picture: np.ndarray) -> str | None:
    """The ground of a picture [height, width, 3] uint8, None where it has none of the world's."""
    nearest, found = _look_at_ground(picture)
    return nearest if found else None


def _look_at_ground(picture: np.ndarray) -> tuple[str, bool]:
    """The world's colour that is nearest to the ground's, and whether it is that."""
    height, width = picture.shape[:2]
    gaps = picture[_gap_mask(width, height)].astype(np.float32) / 255
    nearest = int(np.abs(_VALUES - np.median(gaps, axis=0)).max(axis=1).argmin())
    return _NAMES[nearest], bool(np.abs(_VALUES[nearest] - gaps.mean(axis=0)).max() <= COLOUR_TOLERANCE)


def look(picture: np.ndarray) -> Sight:
    """The scene of a picture [height, width, 3] uint8 of any size that the layout fits (sides from 48 pixels)."""
    ground, cells = look_at_cells(picture)
    if ground is None:
        return Sight(None, "the ground has none of the world's colours")
    for place, cell in enumerate(cells):
        if cell.doubt:
            return Sight(None, f"{PLACES[place]}: {cell.doubt}")
    return Sight(Scene(ground, tuple(cell.thing for cell in cells if cell.thing)))


MARGINS = ("off", "there", "unexplained", "colour", "kind")
"""What decides about a cell, each a logarithm that is 0 where the verdict turns: how far it is from what it is taken for
against the tolerance; how much better a thing explains it than the ground does; what of the thing is missing or too much,
and how far its colour is off, against what may be; how much worse the next best shape and size is."""


def look_at_cell(picture: np.ndarray, place: int, ground_name: str) -> Cell:
    """One cell of a picture [height, width, 3] uint8 whose ground is known."""
    return examine_cell(picture, place, ground_name)[0]


def examine_cell(picture: np.ndarray, place: int, ground_name: str) -> tuple[Cell, np.ndarray]:
    """`look_at_cell`, and the `MARGINS` of its verdict, NaN for those that have no part in it."""
    height, width = picture.shape[:2]
    left, top, right, bottom = cell_box(place, width, height)
    cell = picture[top:bottom, left:right].reshape(-1, 3).astype(np.float32) / 255
    ground = _NAMES.index(ground_name)
    kinds, alphas = _candidates(place, width, height)
    difference = cell - _VALUES[ground]
    # |cell - ground - alpha * (colour - ground)|^2 summed over the cell, for every kind and colour at once.
    steps = _VALUES - _VALUES[ground]
    total = (difference**2).sum()
    cross = alphas @ (difference @ steps.T)
    square = np.outer((alphas**2).sum(axis=1), (steps**2).sum(axis=1))
    errors = total - 2 * cross + square
    errors[:, ground] = np.inf  # What has the ground's colour is no thing.
    kind, colour = np.unravel_index(errors.argmin(), errors.shape)
    best = errors[kind, colour]
    empty = total <= best
    error = float(np.sqrt(max(total if empty else best, 0.0) / cell.size))
    inside = cell[alphas[kind] > 0.99]
    colour_off = np.abs(inside.mean(axis=0) - _VALUES[colour]).max() if len(inside) else 0.0
    others = np.delete(errors[:, colour], kind).min()
    margins = _logarithms(
        (error, total, best, colour_off, others), (CELL_TOLERANCE, best, UNEXPLAINED * square[kind, colour], COLOUR_TOLERANCE, best)
    )
    if empty:
        margins[2:] = np.nan
    return _verdict(error, empty, margins, kinds[kind], colour, place), margins


def _logarithms(values: Sequence[float], limits: Sequence[float]) -> np.ndarray:
    return np.log(np.maximum(values, 1e-6)) - np.log(np.maximum(limits, 1e-6))


def _verdict(error: float, empty: bool, margins: np.ndarray, kind: tuple[str, str], colour: int, place: int) -> Cell:
    if error > CELL_TOLERANCE:
        return Cell(None, f"nothing of the world looks like this (difference {error:.2f})")
    if empty:
        return Cell(None)
    if margins[2] > 0:
        return Cell(None, "a thing is incomplete")
    if margins[3] > 0:
        return Cell(None, "a thing has none of the world's colours")
    shape, size = kind
    return Cell(Thing(place, _NAMES[colour], shape, size))


def matches(seen: Scene | None, wanted: Scene) -> bool:
    """Whether a scene has exactly the things that a description asks for, on its ground. Open attributes may be anything."""
    if seen is None or len(seen.things) != len(wanted.things) or wanted.ground not in (None, seen.ground):
        return False
    return any(all(fits(d, t) for d, t in zip(wanted.things, order)) for order in permutations(seen.things))


def preserved(picture: np.ndarray, source: np.ndarray, changed_places: set[int], ground_changed: bool) -> bool:
    """Whether everything that an edit should leave alone is as in the source picture of the same size.

    Cells outside `changed_places` must agree pixel by pixel; if the ground was to change, the things on it must agree,
    but for their outermost pixels, into which an autoencoder mixes the ground.
    """
    height, width = source.shape[:2]
    for place in set(range(len(PLACES))) - changed_places:
        left, top, right, bottom = cell_box(place, width, height)
        new, old = picture[top:bottom, left:right], source[top:bottom, left:right]
        if ground_changed:
            before = look_at(source, place)
            if before is None:
                continue
            inside = _interior(coverage(before.shape, before.size, place, width, height) > 0.99)
            new, old = new[inside], old[inside]
        if np.abs(new.astype(np.float32) - old).mean() / 255 > PRESERVED_TOLERANCE:
            return False
    return True


def _interior(mask: np.ndarray) -> np.ndarray:
    """Those pixels of a mask [height, width] whose four neighbours belong to it too."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def look_at(picture: np.ndarray, place: int) -> Thing | None:
    """The thing at a place of a clear picture, or None."""
    seen = look(picture).scene
    return next((t for t in seen.things if t.place == place), None) if seen else None
