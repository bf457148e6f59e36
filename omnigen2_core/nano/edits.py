"""Instructions that change a picture, and pictures built from others, with what should come of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import wording as w
from .world import COLOURS, SHAPES, SIZES, Scene, Thing, draw_scene

EDIT_KINDS = ("recolour", "reshape", "move", "add", "remove", "ground")
ORDINALS = ("first", "second", "third", "fourth", "fifth")


@dataclass(frozen=True)
class Edit:
    """An instruction on `source` that should give `target`. `meaning` says it in one fixed form."""

    kind: str
    source: Scene
    target: Scene
    prompt: str
    meaning: str


@dataclass(frozen=True)
class Composition:
    """A prompt that places the things of several one-thing `references` in one picture; `parts`: its words for each."""

    references: tuple[Scene, ...]
    target: Scene
    prompt: str
    meaning: str
    parts: tuple[str, ...] = ()


def change_scene(rng: random.Random, kind: str, source: Scene) -> tuple[Scene, Thing | None, Thing | None]:
    """A random change of a kind: the target, the thing it is about and what becomes of it."""
    things = list(source.things)
    if kind == "ground":
        free = [c for c in COLOURS if c != source.ground and all(t.colour != c for t in things)]
        return Scene(rng.choice(free), source.things), None, None
    if kind == "add":
        taken = {(t.colour, t.shape) for t in things}
        while True:
            new = Thing(rng.choice(source.free_places()), rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(SIZES)))
            if new.colour != source.ground and (new.colour, new.shape) not in taken:
                return source.with_things(things + [new]), None, new
    old = rng.choice(things)
    rest = [t for t in things if t is not old]
    if kind == "remove":
        return source.with_things(rest), old, None
    if kind == "move":
        new = old.but(place=rng.choice(source.free_places()))
    elif kind == "recolour":
        new = old.but(colour=rng.choice([c for c in COLOURS if c not in (old.colour, source.ground)]))
    else:
        new = old.but(shape=rng.choice([s for s in SHAPES if s != old.shape]))
    if any((t.colour, t.shape) == (new.colour, new.shape) for t in rest):
        return change_scene(rng, kind, source)
    return source.with_things(rest + [new]), old, new


def draw_edit(rng: random.Random, kind: str | None = None, source: Scene | None = None) -> Edit:
    """A random edit of a scene of one to three things (an added thing makes it at most three)."""
    kind = kind or rng.choice(EDIT_KINDS)
    source = source or draw_scene(rng, rng.randint(1, 2 if kind == "add" else 3))
    target, old, new = change_scene(rng, kind, source)
    if rng.random() < 0.1:
        named = old and old.but(place=None, size=None)
        prompt = _instruction_zh(rng, kind, target, named, new)
    else:
        named = old and _referring(rng, source, old)
        prompt = _instruction(rng, kind, target, named, new)
        prompt = prompt[0].upper() + prompt[1:] if rng.random() < 0.5 else prompt
    return Edit(kind, source, target, prompt, _meaning(kind, target, named, new))


def _referring(rng: random.Random, source: Scene, thing: Thing) -> Thing:
    """Enough of a thing's attributes to fit no other thing of the scene; colour and shape always do."""
    others = [t for t in source.things if t is not thing]
    thing = thing.but(place=None)
    options = [thing.but(size=None), thing.but(size=None), thing]
    if all(t.shape != thing.shape for t in others):
        options.append(thing.but(size=None, colour=None))
    if all(t.colour != thing.colour for t in others):
        options.append(thing.but(size=None, shape=None))
    return rng.choice(options)


def _instruction(rng, kind, target, named, new) -> str:
    the = "the " + w.name_thing(rng, named) if named else ""
    if kind == "ground":
        forms = ("make the background {c}", "change the background to {c}", "change the ground to {c}", "paint the background {c}")
        return rng.choice(forms).format(c=target.ground)
    if kind == "recolour":
        forms = ("make {the} {c}", "paint {the} {c}", "turn {the} {c}", "change the color of {the} to {c}")
        return rng.choice(forms).format(the=the, c=new.colour)
    if kind == "reshape":
        forms = ("turn {the} into {s}", "change {the} to {s}", "replace {the} with {s}")
        return rng.choice(forms).format(the=the, s=w.article(rng.choice(w.SHAPE_NAMES[new.shape])))
    if kind == "remove":
        return rng.choice(("remove {the}", "delete {the}", "take {the} away")).format(the=the)
    place = w.name_place(rng, new.place)
    if kind == "move":
        forms = ("move {the} {p}", "put {the} {p}")
        place = place.replace("at the", "to the").replace("in the", "to the").replace("on the", "to the")
        place = place if place.startswith("to ") else "to the " + place
        return rng.choice(forms).format(the=the, p=place)
    forms = ("add {a} {p}", "draw {a} {p}", "put {a} {p}")
    return rng.choice(forms).format(a=w.article(w.name_thing(rng, new)), p=place)


def _instruction_zh(rng, kind, target, named, new) -> str:
    the = w.name_thing_zh(named) if named else ""
    if kind == "ground":
        return rng.choice(("把背景换成{c}", "把背景改成{c}")).format(c=w.ZH_COLOURS[target.ground])
    if kind == "recolour":
        return rng.choice(("把{the}变成{c}", "把{the}改成{c}")).format(the=the, c=w.ZH_COLOURS[new.colour])
    if kind == "reshape":
        return rng.choice(("把{the}变成{s}", "把{the}换成{s}")).format(the=the, s=w.ZH_SHAPES[new.shape])
    if kind == "remove":
        return rng.choice(("删除{the}", "去掉{the}")).format(the=the)
    if kind == "move":
        return f"把{the}移到{w.ZH_PLACES[new.place]}"
    return f"在{w.ZH_PLACES[new.place]}加一个{w.name_thing_zh(new)}"


def _meaning(kind, target, named, new) -> str:
    """For the encoder's training: what is changed, and to what, in fixed words and reading order."""
    if kind == "ground":
        return f"change background: {target.ground}"
    if kind == "add":
        return "add: " + w.canonical(Scene(None, (new,)))
    about = w.canonical(Scene(None, (named,)))
    if kind == "remove":
        return f"remove: {about}"
    becomes = {"move": w.PLACES[new.place] if new else "", "recolour": new and new.colour, "reshape": new and new.shape}[kind]
    return f"change {about}: {becomes}"


def draw_composition(rng: random.Random, count: int = 2, target: Scene | None = None) -> Composition:
    """A random prompt over `count` one-thing references. Things keep colour, shape and size; place and ground are told."""
    target = target or draw_scene(rng, count)
    things = rng.sample(target.things, count)
    references = []
    for thing in things:
        ground = rng.choice([c for c in COLOURS if c != thing.colour])
        references.append(Scene(ground, (thing.but(place=rng.randrange(9)),)))
    places = [t.place for t in things]
    prompt, parts = _composing_zh(rng, places, target.ground) if rng.random() < 0.1 else _composing(rng, places, target.ground)
    meaning = ", ".join(f"image {i + 1} at {w.PLACES[p]}" for i, p in enumerate(places)) + f"; {target.ground} background"
    return Composition(tuple(references), target, prompt, meaning, tuple(parts))


def _composing(rng: random.Random, places: list[int], ground: str) -> tuple[str, list[str]]:
    noun = rng.choice(("shape", "shape", "object"))
    numbered = rng.random() < 0.7
    parts = []
    for i, place in enumerate(places):
        source = f"image {i + 1}" if numbered else f"the {ORDINALS[i]} image"
        parts.append(f"the {noun} from {source} {w.name_place(rng, place)}")
    things = w.join(parts, rng)
    forms = (
        "put {t} on a {g} background",
        "place {t} on a {g} ground",
        "a {g} background with {t}",
        "combine {t}, {g} background",
        "draw {t} on a {g} background",
    )
    text = rng.choice(forms).format(t=things, g=ground).replace("a orange", "an orange")
    return text[0].upper() + text[1:] if rng.random() < 0.6 else text, parts


def _composing_zh(rng: random.Random, places: list[int], ground: str) -> tuple[str, list[str]]:
    parts = [f"把图{i + 1}的图形放在{w.ZH_PLACES[p]}" for i, p in enumerate(places)]
    return "，".join(parts) + rng.choice(("，{g}背景", "，背景是{g}")).format(g=w.ZH_COLOURS[ground]), parts
