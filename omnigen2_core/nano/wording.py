"""How people word scenes: English in many forms, some Chinese. All functions draw from the `rng` they are given."""

from __future__ import annotations

import random

from .world import PLACES, Scene, Thing

SHAPE_NAMES = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "diamond", "rhombus"),
    "cross": ("cross", "cross", "plus"),
    "ring": ("ring", "ring", "hoop"),
}
SIZE_NAMES = {"large": ("large", "large", "big"), "small": ("small", "small", "little")}
PLACE_NAMES = (
    ("at the top left", "in the top left corner", "in the upper left", "top left"),
    ("at the top", "at the top center", "in the top middle"),
    ("at the top right", "in the top right corner", "in the upper right", "top right"),
    ("on the left", "at the left", "in the middle left"),
    ("in the middle", "in the center", "in the centre"),
    ("on the right", "at the right", "in the middle right"),
    ("at the bottom left", "in the bottom left corner", "in the lower left", "bottom left"),
    ("at the bottom", "at the bottom center", "in the bottom middle"),
    ("at the bottom right", "in the bottom right corner", "in the lower right", "bottom right"),
)
SCENE_FORMS = (
    "{things} on a {ground} background",
    "{things} on a {ground} ground",
    "{things}, {ground} background",
    "a picture of {things} on a {ground} background",
    "a {ground} background with {things}",
    "draw {things} on a {ground} ground",
    "on a {ground} background, {things}",
    "{things}. The background is {ground}.",
    "the image shows {things} on a {ground} background",
)
GROUNDLESS_FORMS = ("{things}", "a picture of {things}", "draw {things}", "the image shows {things}")

ZH_COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
    "blue": "蓝色", "purple": "紫色", "white": "白色", "black": "黑色",
}  # fmt: skip
ZH_SHAPES = {"circle": "圆形", "square": "正方形", "triangle": "三角形", "diamond": "菱形", "cross": "十字", "ring": "圆环"}
ZH_SIZES = {"large": "大", "small": "小"}
ZH_PLACES = ("左上角", "上方", "右上角", "左边", "中间", "右边", "左下角", "下方", "右下角")
ZH_SCENE_FORMS = ("{ground}背景，{things}", "{things}，背景是{ground}", "画{things}，{ground}背景")


def article(words: str) -> str:
    """The words behind "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def name_thing(rng: random.Random, thing: Thing, plain: bool = False) -> str:
    """Size, colour and shape, as far as given: "small red circle". `plain` keeps to the first word for each."""
    pick = (lambda words: words[0]) if plain else rng.choice
    words = [pick(SIZE_NAMES[thing.size])] if thing.size else []
    words += [thing.colour] if thing.colour else []
    return " ".join(words + [pick(SHAPE_NAMES[thing.shape]) if thing.shape else "shape"])


def name_place(rng: random.Random, place: int) -> str:
    """A phrase such as "at the top left"."""
    return rng.choice(PLACE_NAMES[place])


def join(parts: list[str], rng: random.Random) -> str:
    """A list in words."""
    if len(parts) < 2:
        return "".join(parts)
    if rng.random() < 0.3:
        return ", ".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def describe(rng: random.Random, scene: Scene) -> str:
    """A text-to-image prompt for a description."""
    return describe_parts(rng, scene)[0]


def describe_parts(rng: random.Random, scene: Scene) -> tuple[str, list[tuple[Thing, str]]]:
    """A text-to-image prompt, and for each thing the words in it that tell of the thing."""
    if scene.things and rng.random() < 0.12:
        return _describe_zh(rng, scene)
    place_first = rng.random() < 0.15
    bare = rng.random() < 0.15
    parts = []
    for thing in rng.sample(scene.things, len(scene.things)):
        name = name_thing(rng, thing)
        name = name if bare else article(name)
        if thing.place is None:
            words = name
        elif place_first:
            words = f"{name_place(rng, thing.place)} {name}"
        else:
            words = f"{name} {name_place(rng, thing.place)}"
        parts.append((thing, words))
    things = join([words for _, words in parts], rng) or "nothing"
    if scene.ground is None:
        text = rng.choice(GROUNDLESS_FORMS).format(things=things)
    else:
        text = rng.choice(SCENE_FORMS).format(things=things, ground=scene.ground)
        text = text.replace("a orange", "an orange")
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text, parts


def name_thing_zh(thing: Thing) -> str:
    """Chinese for `name_thing`."""
    words = ZH_SIZES[thing.size] if thing.size else ""
    words += ZH_COLOURS[thing.colour] if thing.colour else ""
    return words + (ZH_SHAPES[thing.shape] if thing.shape else "图形")


def _describe_zh(rng: random.Random, scene: Scene) -> tuple[str, list[tuple[Thing, str]]]:
    parts = []
    for thing in rng.sample(scene.things, len(scene.things)):
        place = f"{ZH_PLACES[thing.place]}" if thing.place is not None else ""
        verb = rng.choice(("有一个", "一个"))
        parts.append((thing, f"{place}{verb}{name_thing_zh(thing)}"))
    things = "，".join(words for _, words in parts)
    if scene.ground is None:
        return rng.choice(("{things}", "画{things}")).format(things=things), parts
    return rng.choice(ZH_SCENE_FORMS).format(things=things, ground=ZH_COLOURS[scene.ground]), parts


def canonical(scene: Scene) -> str:
    """The one plain English description of a scene, things in reading order. Unstated attributes are left out."""
    rng = random.Random(0)
    parts = []
    for thing in scene.things:
        place = f" at {PLACES[thing.place]}" if thing.place is not None else ""
        parts.append(name_thing(rng, thing, plain=True) + place)
    ground = f"; {scene.ground} background" if scene.ground else ""
    return ", ".join(parts or ["nothing"]) + ground
