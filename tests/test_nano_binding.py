"""The encoder is asked to hold a thing's attributes together at the tokens that tell of it."""

import random

from omnigen2_core.nano import binding, wording
from omnigen2_core.nano.edits import draw_composition
from omnigen2_core.nano.tokens import build_tokenizer
from omnigen2_core.nano.world import COLOURS, PLACES, SHAPES, Scene, Thing, draw_scene
from omnigen2_core.prompts import generation_prompt


TOKENIZER = build_tokenizer()


def labelled(text, parts):
    encoded = TOKENIZER.encode(generation_prompt(text), add_special_tokens=False)
    labels = binding.classes(generation_prompt(text), encoded.offsets, parts)
    return [generation_prompt(text)[a:b].strip() for a, b in encoded.offsets], labels


def test_a_token_has_what_its_thing_was_said_to_be_up_to_there():
    circle, ring = Thing(0, "red", "circle", "small"), Thing(8, "white", "ring", "large")
    parts = [(binding.attributes(circle), "small red circle top left"), (binding.attributes(ring), "large white ring bottom right")]
    words, labels = labelled("small red circle top left, large white ring bottom right", parts)
    at = {word: i for i, word in enumerate(words)}
    assert labels["colour"][at["small"]] == -1
    assert labels["colour"][at["circle"]] == list(COLOURS).index("red")
    assert labels["shape"][at["red"]] == -1
    assert labels["shape"][at["top left"]] == SHAPES.index("circle")
    assert labels["place"][at["top left"]] == 0
    assert labels["shape"][at["bottom right"]] == SHAPES.index("ring")
    assert labels["place"][at["bottom right"]] == PLACES.index("bottom right")
    assert {labels[name][at[","]] for name in binding.CLASSES} == {-1}


def test_every_thing_of_every_prompt_is_labelled_in_full_somewhere():
    for seed in range(200):
        rng = random.Random(seed)
        scene = draw_scene(rng, 3)
        text, told = wording.describe_parts(rng, scene)
        assert [thing for thing, _ in told] and {thing for thing, _ in told} == set(scene.things)
        _, labels = labelled(text, [(binding.attributes(thing), words) for thing, words in told])
        columns = {tuple(labels[name][i] for name in binding.CLASSES) for i in range(len(labels["place"]))}
        for thing in scene.things:
            wanted = binding.attributes(thing)
            assert tuple(wanted.get(name, -1) for name in binding.CLASSES) in columns, text


def test_open_attributes_have_no_label():
    assert binding.attributes(Thing(None, "red", None, None)) == {"colour": 0}


def test_compositions_bind_each_reference_to_its_place():
    for seed in range(100):
        made = draw_composition(random.Random(seed), 3)
        _, labels = labelled(made.prompt, binding.composition_parts(made))
        pairs = {(r, p) for r, p in zip(labels["reference"], labels["place"]) if r >= 0 and p >= 0}
        wanted = set()
        for i, reference in enumerate(made.references):
            (thing,) = reference.things
            wanted.add((i, next(t.place for t in made.target.things if (t.colour, t.shape, t.size) == (thing.colour, thing.shape, thing.size))))
        assert pairs == wanted, made.prompt


def test_a_scene_without_things_has_a_prompt():
    assert "blue" in wording.describe(random.Random(0), Scene("blue", ()))
