"""Questions about scenes with their answers, for training and testing the nano encoder's eyes and words."""

from __future__ import annotations

import random
from typing import NamedTuple

from . import wording as w
from .world import COLOURS, SHAPES, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four")
KINDS = ("caption", "count", "ground", "place", "where", "colour", "shape", "yes_no")


class Asked(NamedTuple):
    """A question, its only right answer, and the cell that it is about where it is about one."""

    question: str
    answer: str
    place: int | None = None


def ask(rng: random.Random, scene: Scene, kind: str | None = None) -> tuple[str, str]:
    """A question about a fully described scene and the only right answer to it."""
    return ask_about(rng, scene, kind)[:2]


def ask_about(rng: random.Random, scene: Scene, kind: str | None = None) -> Asked:
    """The same with the cell that has to be found for the answer."""
    kind = kind or rng.choice(KINDS)
    if not scene.things and kind not in ("caption", "ground"):
        kind = "count"
    if kind == "caption":
        question = rng.choice(("Describe the picture.", "Describe this image.", "What does the picture show?"))
        return Asked(question, w.canonical(scene))
    if kind == "count":
        return Asked(rng.choice(("How many shapes are there?", "How many shapes do you see?")), NUMBERS[len(scene.things)])
    if kind == "ground":
        return Asked(rng.choice(("What color is the background?", "Which color does the background have?")), scene.ground)
    if kind == "place":
        return _what_is_there(rng, scene)
    if kind == "yes_no":
        return _is_there(rng, scene)
    thing = rng.choice(scene.things)
    if kind == "where":
        return Asked(f"Where is the {thing.colour} {thing.shape}?", w.PLACES[thing.place], thing.place)
    if kind == "colour":
        alone = sum(t.shape == thing.shape for t in scene.things) == 1
        question, answer = f"What color is the {thing.shape}?", thing.colour
    else:
        alone = sum(t.colour == thing.colour for t in scene.things) == 1
        question, answer = f"Which shape is {thing.colour}?", thing.shape
    return Asked(question, answer, thing.place) if alone else _what_is_there(rng, scene)


def _what_is_there(rng: random.Random, scene: Scene) -> Asked:
    place = rng.choice(scene.things).place if rng.random() < 0.7 else rng.randrange(9)
    found = [t for t in scene.things if t.place == place]
    answer = w.canonical(Scene(None, (found[0].but(place=None),))) if found else "nothing"
    return Asked(f"What is {w.name_place(rng, place)}?", answer, place)


def _is_there(rng: random.Random, scene: Scene) -> Asked:
    thing = rng.choice(scene.things).but(size=None)
    if rng.random() < 0.6:
        change = rng.choice(("colour", "shape", "place"))
        options = {"colour": list(COLOURS), "shape": SHAPES, "place": range(9)}[change]
        thing = thing.but(**{change: rng.choice([o for o in options if o != getattr(thing, change)])})
    asked = thing if rng.random() < 0.5 else thing.but(place=None)
    where = f" {w.name_place(rng, asked.place)}" if asked.place is not None else ""
    found = next((t for t in scene.things if fits(asked, t)), None)
    place = found.place if found else asked.place
    return Asked(f"Is there {w.article(w.name_thing(rng, asked))}{where}?", "yes" if found else "no", place)


def fits(description: Thing, thing: Thing) -> bool:
    """Whether a thing has everything that a description states."""
    return all(getattr(description, f) in (None, getattr(thing, f)) for f in ("place", "colour", "shape", "size"))
