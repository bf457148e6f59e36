"""Which attributes a prompt's tokens belong to: what the encoder's last hidden states must hold together.

A transformer that finds the words "top left" must learn from the same token what is to be there. So every token is
asked for all that its thing has been said to be, up to and including the token.
"""

from __future__ import annotations

from typing import Sequence

from . import wording as w
from .edits import Composition
from .world import COLOURS, PLACES, SHAPES, SIZES, Thing

CLASSES = {"colour": len(COLOURS), "shape": len(SHAPES), "size": len(SIZES), "place": len(PLACES), "reference": 5}

_WORDS = {
    "colour": [(name, w.ZH_COLOURS[name]) for name in COLOURS],
    "shape": [(*w.SHAPE_NAMES[name], w.ZH_SHAPES[name]) for name in SHAPES],
    "size": [(*w.SIZE_NAMES[name], w.ZH_SIZES[name]) for name in SIZES],
    "place": [(*w.PLACE_NAMES[place], w.ZH_PLACES[place]) for place in range(len(PLACES))],
    "reference": [(f"image {i + 1}", f"{word} image", f"图{i + 1}") for i, word in enumerate(("first", "second", "third", "fourth", "fifth"))],
}


def attributes(thing: Thing) -> dict[str, int]:
    """A thing's stated attributes as class numbers."""
    stated = {"colour": (list(COLOURS), thing.colour), "shape": (SHAPES, thing.shape), "size": (list(SIZES), thing.size)}
    numbers = {name: list(options).index(value) for name, (options, value) in stated.items() if value is not None}
    return numbers if thing.place is None else {**numbers, "place": thing.place}


def composition_parts(made: Composition) -> list[tuple[dict[str, int], str]]:
    """For each reference its number and where its thing goes, with the words that say so."""
    looks = {(t.colour, t.shape, t.size): t.place for t in made.target.things}
    things = [r.things[0] for r in made.references]
    places = [looks[t.colour, t.shape, t.size] for t in things]
    return [({"reference": i, "place": place}, words) for i, (place, words) in enumerate(zip(places, made.parts))]


def classes(
    text: str, offsets: Sequence[tuple[int, int]], parts: Sequence[tuple[dict[str, int], str]]
) -> dict[str, list[int]]:
    """For each attribute the class of every token's thing, -1 where it has none or it was not said yet.

    `offsets` are the tokens' character positions in `text`; `parts` the attributes of each thing and its words.
    """
    labels = {name: [-1] * len(offsets) for name in CLASSES}
    lowered = text.lower()
    for numbers, words in parts:
        begin = lowered.index(words.lower())
        for name, number in numbers.items():
            said = [words.lower().find(word) + len(word) for word in _WORDS[name][number] if word in words.lower()]
            said_at = begin + max(said)
            for i, (_, end) in enumerate(offsets):
                if said_at <= end <= begin + len(words):
                    labels[name][i] = number
    return labels
