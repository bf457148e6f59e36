"""What is wrong with a picture, in words: the reflections that the nano model learns to write.

A correction speaks of places alone ("put a small red circle at the top left, clear the bottom"), so that it can be
followed whatever is there now, be it a thing of the world or not.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Sequence

import numpy as np

from . import wording as w
from .judge import Cell, examine_cell, ground_of, look_at_cell
from .world import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing, cell_box, coverage, render

RIGHT = "It is right."


@dataclass(frozen=True)
class Fault:
    """One place, or the ground (place None), with what should be there (None: nothing) and what is seen in its stead."""

    place: int | None
    wanted: Thing | str | None
    seen: str


def find_faults(wanted: Scene, ground: str | None, cells: Sequence[Cell]) -> list[Fault]:
    """The faults of a picture by what the judge sees in it, the ground first, then in reading order.

    `wanted` is fully described.
    """
    faults = []
    if ground != wanted.ground:
        faults.append(Fault(None, wanted.ground, ground or "unclear"))
    by_place = {thing.place: thing for thing in wanted.things}
    for place, cell in enumerate(cells):
        thing = by_place.get(place)
        if cell.doubt or cell.thing != thing:
            faults.append(Fault(place, thing, _name(cell)))
    return faults


def leeway(wanted: Scene, picture: np.ndarray) -> float:
    """How far a picture [height, width, 3] uint8 is from being judged otherwise, as a logarithm (0..; 0: at the limit).

    What the judge measures (its `MARGINS`) misses or keeps a limit by this factor: in a right picture the limit that is
    kept the least, in a wrong one that which is missed the most. Infinite where no limit lies between what is seen and
    what is wanted, as with another colour, or a whole thing that is missing.
    """
    ground = ground_of(picture)
    if ground is None or ground != wanted.ground:
        return math.inf
    examined = [examine_cell(picture, place, ground) for place in range(len(PLACES))]
    faults = find_faults(wanted, ground, [cell for cell, _ in examined])
    if faults:
        return float(max(_missed_by(fault.wanted, *examined[fault.place]) for fault in faults))
    return float(np.nanmin(np.abs([margins for _, margins in examined])))


def _missed_by(wanted: Thing | None, cell: Cell, margins: np.ndarray) -> float:
    off, there, unexplained, colour, kind = margins
    if cell.doubt:
        return there if wanted is None and there > 0 else np.nanmax([off, unexplained, colour])
    alike = wanted is not None and cell.thing is not None and wanted.colour == cell.thing.colour
    return kind if alike else math.inf


def touched(faults: Sequence[Fault]) -> frozenset[Thing]:
    """What a correction changes, as things: those that are wanted, and for a place to be cleared all that could be there."""
    places = [(fault.place, fault.wanted) for fault in faults if fault.place is not None]
    return frozenset(thing or Thing(place, None, "square", "large") for place, thing in places)


def _name(cell: Cell) -> str:
    if cell.doubt:
        return "something unclear"
    if cell.thing is None:
        return "nothing"
    return w.canonical(Scene(None, (cell.thing.but(place=None),)))


def corrections(rng: random.Random, faults: Sequence[Fault], *, plain: bool = False) -> str:
    """The edit instruction that mends all faults. `plain` keeps to one wording."""
    parts = []
    for fault in faults:
        if fault.place is None:
            parts.append(f"make the background {fault.wanted}")
            continue
        where = w.PLACE_NAMES[fault.place][0] if plain else w.name_place(rng, fault.place)
        if fault.wanted is None:
            verb = "clear" if plain else rng.choice(("clear", "clear", "empty"))
            parts.append(f"{verb} {where.removeprefix('at ').removeprefix('in ').removeprefix('on ')}")
        else:
            verb = "put" if plain else rng.choice(("put", "put", "draw", "add"))
            parts.append(f"{verb} {w.article(w.name_thing(rng, fault.wanted, plain=plain))} {where}")
    return ", ".join(parts)


def reflection(faults: Sequence[Fault]) -> str:
    """The words of a reflection: the faults in one line and the correction in the next; or that all is right."""
    if not faults:
        return RIGHT
    problems = []
    for fault in faults:
        where = "background" if fault.place is None else PLACES[fault.place]
        problems.append(f"{where}: {fault.seen}")
    return f"Wrong at {', '.join(problems)}.\n{corrections(random.Random(0), faults, plain=True)}"


@dataclass(frozen=True)
class Spot:
    """Damage to one cell: `kind` of SPOTS, the thing that is mixed in, and how much, 0..1."""

    place: int
    kind: str
    thing: Thing
    amount: float


SPOTS = ("faded", "mixed", "cut", "tinted")


@dataclass(frozen=True)
class Spoiled:
    """A scene whose picture has damaged cells, in the ways in which a model's pictures are wrong."""

    scene: Scene
    spots: tuple[Spot, ...] = ()


def draw_spoiled(rng: random.Random, wanted: Scene) -> Spoiled:
    """A picture of a fully described scene with none to three faults: other things, missing ones, extra ones, damage."""
    things = {thing.place: thing for thing in wanted.things}
    ground, spots = wanted.ground, {}
    for place in rng.sample(range(len(PLACES)), len(PLACES))[: rng.choice((0, 0, 0, 1, 1, 1, 2, 3))]:
        # Things are what mostly goes wrong, so an empty place is often passed over for one.
        if place not in things and rng.random() < 0.6 and wanted.things:
            place = rng.choice(wanted.things).place
        thing, chance = things.get(place), rng.random()
        other = Thing(place, rng.choice([c for c in COLOURS if c != ground]), rng.choice(SHAPES), rng.choice(list(SIZES)))
        if thing is None:
            things[place] = other
        elif chance < 0.2:
            del things[place]
        elif chance < 0.7:
            field = rng.choice(("colour", "shape", "size"))
            things[place] = thing.but(**{field: getattr(other, field)})
        if place in things and (chance > 0.7 or rng.random() < 0.1):
            spots[place] = Spot(place, rng.choice(SPOTS), other, rng.uniform(0.1, 0.7))
    if rng.random() < 0.05:
        ground = rng.choice([c for c in COLOURS if all(t.colour != c for t in things.values())])
    return Spoiled(Scene(ground, tuple(things.values())), tuple(spot for place, spot in spots.items() if place in things))


@lru_cache(maxsize=4096)
def _tint(amount: float) -> np.ndarray:
    return np.random.default_rng(int(amount * 1e6)).uniform(-160, 160, 3).astype(np.float32)


def render_spoiled(spoiled: Spoiled, width: int, height: int) -> np.ndarray:
    """The picture [height, width, 3] uint8."""
    picture = render(spoiled.scene, width, height).astype(np.float32)
    for spot in spoiled.spots:
        left, top, right, bottom = cell_box(spot.place, width, height)
        cell, clear = picture[top:bottom, left:right], np.asarray(COLOURS[spoiled.scene.ground], np.float32)
        if spot.kind == "faded":
            cell += spot.amount * (clear - cell)
        elif spot.kind == "mixed":
            alpha = spot.amount * coverage(spot.thing.shape, spot.thing.size, spot.place, width, height)[..., None]
            cell += alpha * (np.asarray(COLOURS[spot.thing.colour], np.float32) - cell)
        elif spot.kind == "cut":
            part = slice(int(len(cell) * (1 - spot.amount / 2 - 0.15)), None)
            cell[part if spot.thing.size == "large" else slice(0, len(cell) - part.start)] = clear
        else:
            thing = next(t for t in spoiled.scene.things if t.place == spot.place)
            alpha = coverage(thing.shape, thing.size, spot.place, width, height)[..., None]
            cell += alpha * spot.amount * _tint(spot.amount)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def cells_of(spoiled: Spoiled, pixels: np.ndarray) -> tuple[Cell, ...]:
    """What the judge sees in the picture of a spoiled scene; only the damaged cells have to be looked at."""
    things = {thing.place: thing for thing in spoiled.scene.things}
    damaged = {spot.place for spot in spoiled.spots}
    return tuple(
        look_at_cell(pixels, place, spoiled.scene.ground) if place in damaged else Cell(things.get(place))
        for place in range(len(PLACES))
    )
