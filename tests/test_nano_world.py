"""The nano model's world: scenes, their pictures, and the words for them."""

import random

import numpy as np
import pytest

from omnigen2_core.nano import edits, wording
from omnigen2_core.nano.world import COLOURS, PICTURE_SIZES, PLACES, SHAPES, SIZES, Scene, Thing, cell_box, draw_scene, render


def test_the_world_is_as_rich_as_promised():
    assert len(COLOURS) >= 8 and len(SHAPES) >= 6 and len(SIZES) >= 2 and len(PLACES) == 9
    assert all(64 <= side <= 128 and side % 16 == 0 for size in PICTURE_SIZES for side in size)
    assert any(width != height for width, height in PICTURE_SIZES)


def test_a_picture_depends_on_its_scene_alone():
    scene = draw_scene(random.Random(1), 3)
    assert np.array_equal(render(scene), render(Scene(scene.ground, scene.things[::-1])))


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_a_thing_stays_in_its_cell_and_away_from_its_edges(size):
    for shape in SHAPES:
        picture = render(Scene("white", (Thing(5, "black", shape, "large"),)), *size)
        left, top, right, bottom = cell_box(5, *size)
        inner = picture[top:bottom, left:right]
        assert (inner < 100).any()
        edges = np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
        assert (edges > 120).all()
        picture[top:bottom, left:right] = 246
        assert (picture == 246).all()


def test_drawn_scenes_have_the_asked_number_of_distinct_things_off_the_ground():
    rng = random.Random(2)
    for count in (1, 2, 3, 4) * 50:
        scene = draw_scene(rng, count)
        assert len({t.place for t in scene.things}) == len({(t.colour, t.shape) for t in scene.things}) == count
        assert all(t.colour != scene.ground for t in scene.things)


def test_prompts_vary_and_say_everything_that_is_given():
    scene = Scene("blue", (Thing(0, "red", "circle", "small"), Thing(8, "white", "ring", "large")))
    prompts = {wording.describe(random.Random(seed), scene) for seed in range(300)}
    assert len(prompts) > 200
    chinese = [p for p in prompts if not p.isascii()]
    assert 10 < len(chinese) < 90
    for prompt in prompts - set(chinese):
        words = prompt.lower()
        assert all(word in words for word in ("blue", "red", "white"))
        assert any(word in words for word in wording.SIZE_NAMES["small"]) and any(w in words for w in wording.SHAPE_NAMES["ring"])
    assert all("红色" in p and "蓝色" in p and "左上角" in p and "圆环" in p for p in chinese)


def test_open_attributes_are_not_mentioned():
    prompt = wording.describe(random.Random(0), Scene(None, (Thing(None, "red", "cross", None),)))
    assert "background" not in prompt and "large" not in prompt and "small" not in prompt


@pytest.mark.parametrize("kind", edits.EDIT_KINDS)
def test_an_edit_changes_one_thing_only(kind):
    for seed in range(100):
        edit = edits.draw_edit(random.Random(seed), kind)
        before, after = set(edit.source.things), set(edit.target.things)
        if kind == "ground":
            assert before == after and edit.source.ground != edit.target.ground
            continue
        assert edit.source.ground == edit.target.ground
        assert (len(before - after), len(after - before)) == {"add": (0, 1), "remove": (1, 0)}.get(kind, (1, 1))
        if kind in ("recolour", "reshape", "move"):
            (old,), (new,) = before - after, after - before
            field = {"recolour": "colour", "reshape": "shape", "move": "place"}[kind]
            assert old.but(**{field: getattr(new, field)}) == new


def test_what_an_edit_refers_to_is_one_thing_of_the_source():
    for seed in range(300):
        edit = edits.draw_edit(random.Random(seed))
        about = edit.meaning.split(":")[0].split()[1:] if edit.meaning.startswith("change") else []
        if about and about[0] != "background":
            fitting = [t for t in edit.source.things if all(word in (t.colour, t.shape, t.size, "shape") for word in about)]
            assert len(fitting) == 1, edit


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_composition_takes_each_thing_from_its_reference(count):
    for seed in range(50):
        made = edits.draw_composition(random.Random(seed), count)
        assert len(made.references) == len(made.target.things) == count
        assert all(len(r.things) == 1 and r.ground != r.things[0].colour for r in made.references)
        taken = sorted((r.things[0].colour, r.things[0].shape, r.things[0].size) for r in made.references)
        assert taken == sorted((t.colour, t.shape, t.size) for t in made.target.things)
        assert not set(COLOURS) & set(made.prompt.split()) - {made.target.ground, made.target.ground + ","}
