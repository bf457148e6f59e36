"""The nano model's world: flat coloured shapes on a coloured ground, one in each cell of a 3x3 layout.

Everything here is exact and without chance except `draw_scene`: the same scene and size always give the same pixels,
so that a program can compare a generated picture with what it should be.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 45),
    "orange": (242, 142, 38),
    "yellow": (246, 216, 60),
    "green": (46, 150, 72),
    "blue": (48, 92, 208),
    "purple": (142, 68, 176),
    "white": (246, 246, 246),
    "black": (24, 24, 28),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES: dict[str, float] = {"large": 0.86, "small": 0.46}
"""Extent of a shape as a share of the shorter side of its cell."""
PLACES = (
    "top left", "top", "top right",
    "left", "middle", "right",
    "bottom left", "bottom", "bottom right",
)
"""Row-major names of the nine cells."""
MAX_THINGS = 4
DEFAULT_SIZE = (96, 96)
PICTURE_SIZES = ((96, 96), (64, 64), (128, 128), (128, 96), (96, 128))
"""(width, height) in pixels; the first is the default."""

_SUPERSAMPLING = 4


@dataclass(frozen=True, order=True)
class Thing:
    """One shape. `place` is a cell index 0..8. In a description any field may be None, meaning "whatever"."""

    place: int | None
    colour: str | None
    shape: str | None
    size: str | None

    def but(self, **changes) -> "Thing":
        """The same thing with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Scene:
    """A ground colour and its things, ordered by place. In a description `ground` may be None, meaning "whatever"."""

    ground: str | None
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        ordered = sorted(self.things, key=lambda t: (t.place is None, t.place or 0))
        object.__setattr__(self, "things", tuple(ordered))

    def free_places(self) -> list[int]:
        """Cells without a thing."""
        taken = {t.place for t in self.things}
        return [p for p in range(len(PLACES)) if p not in taken]

    def with_things(self, things) -> "Scene":
        """The same ground under other things."""
        return Scene(self.ground, tuple(things))


def draw_scene(rng: random.Random, count: int) -> Scene:
    """A random scene of `count` things. Its things differ from the ground and, in colour and shape, from each other."""
    ground = rng.choice(list(COLOURS))
    colours = [c for c in COLOURS if c != ground]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = (rng.choice(colours), rng.choice(SHAPES))
        if pair not in pairs:
            pairs.append(pair)
    places = rng.sample(range(len(PLACES)), count)
    return Scene(ground, tuple(Thing(p, c, s, rng.choice(list(SIZES))) for p, (c, s) in zip(places, pairs)))


def cell_box(place: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Pixel box (left, top, right, bottom) of a cell."""
    row, column = divmod(place, 3)
    return (round(column * width / 3), round(row * height / 3), round((column + 1) * width / 3), round((row + 1) * height / 3))


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points of the square -1..1 (u right, v down) lie in the shape."""
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "ring":
        r = u * u + v * v
        return (r <= 1) & (r >= 0.25)
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.88
    if shape == "diamond":
        return abs(u) + abs(v) <= 1.05
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) <= 0.34) & (np.maximum(abs(u), abs(v)) <= 1)
    if shape == "triangle":
        return (v <= 0.85) & (abs(u) <= (v + 1) / 1.85)
    raise ValueError(f"unknown shape {shape!r}; the world has {', '.join(SHAPES)}")


@lru_cache(maxsize=4096)
def coverage(shape: str, size: str, place: int, width: int, height: int) -> np.ndarray:
    """Share 0..1 of each pixel of a cell that a shape covers, [cell height, cell width] float32."""
    left, top, right, bottom = cell_box(place, width, height)
    centre_x, centre_y = (place % 3 + 0.5) * width / 3, (place // 3 + 0.5) * height / 3
    half = SIZES[size] * min(width, height) / 6
    n = _SUPERSAMPLING
    x = (np.arange(left * n, right * n) + 0.5) / n
    y = (np.arange(top * n, bottom * n) + 0.5) / n
    u, v = np.meshgrid((x - centre_x) / half, (y - centre_y) / half)
    fine = _inside(shape, u, v).astype(np.float32)
    return fine.reshape(bottom - top, n, right - left, n).mean(axis=(1, 3))


def render(scene: Scene, width: int = 96, height: int = 96) -> np.ndarray:
    """The picture of a fully described scene, [height, width, 3] uint8."""
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = COLOURS[scene.ground]
    for thing in scene.things:
        left, top, right, bottom = cell_box(thing.place, width, height)
        alpha = coverage(thing.shape, thing.size, thing.place, width, height)[..., None]
        cell = picture[top:bottom, left:right]
        cell[:] = cell * (1 - alpha) + np.asarray(COLOURS[thing.colour], np.float32) * alpha
    return np.round(picture).astype(np.uint8)
