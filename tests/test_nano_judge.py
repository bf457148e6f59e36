"""The judge reads every picture of the world right and accepts no damaged one."""

import random
from collections import Counter

import numpy as np
import pytest

from omnigen2_core.nano.faults import draw_spoiled, render_spoiled
from omnigen2_core.nano.judge import Cell, examine_cell, look, look_at_cell, matches, preserved
from omnigen2_core.nano.world import COLOURS, DEFAULT_SIZE, PICTURE_SIZES, PLACES, SHAPES, SIZES, Scene, Thing, cell_box, draw_scene, render


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_every_rendered_scene_is_read_exactly(size):
    rng = random.Random(3)
    for count in (0, 1, 2, 3, 4) * 30:
        scene = draw_scene(rng, count)
        assert look(render(scene, *size)).scene == scene


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_every_thing_is_told_from_every_other(size):
    for colour in COLOURS:
        for shape in SHAPES:
            for extent in SIZES:
                for ground in ("black", "white", "orange"):
                    if ground != colour:
                        scene = Scene(ground, (Thing(4, colour, shape, extent),))
                        assert look(render(scene, *size)).scene == scene


def test_mild_noise_does_not_confuse_it():
    generator = np.random.default_rng(0)
    scene = draw_scene(random.Random(5), 3)
    noisy = np.clip(render(scene) + generator.normal(0, 8, (96, 96, 3)), 0, 255).astype(np.uint8)
    assert look(noisy).scene == scene


@pytest.mark.parametrize("size", PICTURE_SIZES)
@pytest.mark.parametrize("field", ["colour", "shape", "size", "place", "ground", "missing", "extra"])
def test_a_wrong_attribute_is_never_accepted(field, size):
    rng = random.Random(7)
    for _ in range(40):
        scene = draw_scene(rng, 3)
        thing, rest = scene.things[0], list(scene.things[1:])
        if field == "ground":
            wrong = Scene(rng.choice([c for c in COLOURS if c != scene.ground and all(t.colour != c for t in scene.things)]), scene.things)
        elif field == "missing":
            wrong = scene.with_things(rest)
        elif field == "extra":
            wrong = scene.with_things([*scene.things, thing.but(place=rng.choice(scene.free_places()))])
        else:
            colours = [c for c in COLOURS if c not in (scene.ground, thing.colour)]
            options = {"colour": colours, "shape": SHAPES, "size": list(SIZES), "place": scene.free_places()}[field]
            wrong = scene.with_things([*rest, thing.but(**{field: rng.choice([o for o in options if o != getattr(thing, field)])})])
        assert not matches(look(render(wrong, *size)).scene, scene)


def damaged(picture, kind, rng):
    height, width = picture.shape[:2]
    if kind == "grey veil":
        return (picture * 0.5 + 64).astype(np.uint8)
    if kind == "noise":
        return np.clip(picture + rng.normal(0, 60, picture.shape), 0, 255).astype(np.uint8)
    if kind == "shifted by half a cell":
        return np.roll(picture, (height // 6, width // 6), axis=(0, 1))
    if kind == "things of another colour":
        other = picture.copy()
        other[(picture != picture[0, 0]).any(axis=2)] = (120, 200, 190)
        return other
    left, top, right, bottom = cell_box(4, width, height)
    halved = picture.copy()
    halved[top : (top + bottom) // 2, left:right] = picture[0, 0]
    return halved


@pytest.mark.parametrize("kind", ["grey veil", "noise", "shifted by half a cell", "things of another colour", "half a thing"])
def test_damaged_pictures_are_rejected(kind):
    generator, rng = np.random.default_rng(0), random.Random(9)
    for _ in range(40):
        ground = rng.choice(list(COLOURS))
        colour = rng.choice([c for c in COLOURS if c != ground])
        scene = Scene(ground, (Thing(4, colour, rng.choice(SHAPES), "large"),))
        assert not matches(look(damaged(render(scene), kind, generator)).scene, scene), (kind, scene)


def test_open_attributes_match_anything_and_stated_ones_only_themselves():
    seen = Scene("blue", (Thing(0, "red", "circle", "small"), Thing(4, "white", "ring", "large")))
    assert matches(seen, Scene(None, (Thing(None, "white", None, None), Thing(None, "red", "circle", None))))
    assert not matches(seen, Scene(None, (Thing(None, "white", None, None), Thing(None, "red", "square", None))))
    assert not matches(seen, Scene(None, (Thing(None, "white", None, None),)))
    assert not matches(None, seen)


def test_preserved_notices_changes_outside_the_edited_cells():
    scene = Scene("blue", (Thing(0, "red", "circle", "small"), Thing(4, "white", "ring", "large")))
    source = render(scene)
    recoloured = render(Scene("blue", (scene.things[0].but(colour="green"), scene.things[1])))
    assert preserved(recoloured, source, {0}, False)
    assert not preserved(recoloured, source, {4}, False)
    other_ground = render(Scene("yellow", scene.things))
    assert preserved(other_ground, source, set(), True)
    assert not preserved(other_ground, source, set(), False)


def test_margins_change_sign_where_the_verdict_turns():
    rng, seen = random.Random(11), Counter()
    for _ in range(60):
        spoiled = draw_spoiled(rng, draw_scene(rng, 4))
        picture = render_spoiled(spoiled, *DEFAULT_SIZE)
        for place in range(len(PLACES)):
            cell, (off, there, unexplained, colour, kind) = examine_cell(picture, place, spoiled.scene.ground)
            assert cell == look_at_cell(picture, place, spoiled.scene.ground)
            assert (off > 0) == cell.doubt.startswith("nothing of the world")
            if cell == Cell(None):
                assert there < 0 and np.isnan([unexplained, colour, kind]).all()
            elif not cell.doubt:
                assert there > 0 and kind > 0 > max(unexplained, colour)
            seen[cell.doubt.split(" (")[0]] += 1
            assert (cell.doubt == "a thing is incomplete") == (off <= 0 and unexplained > 0)
            assert (cell.doubt == "a thing has none of the world's colours") == (off <= 0 and unexplained <= 0 < colour)
    assert len(seen) == 4


@pytest.mark.parametrize("off, accepted", [(0.06, True), (0.11, True), (0.13, False), (0.2, False)])
def test_a_margin_is_the_logarithm_of_how_far_a_limit_is_reached(off, accepted):
    thing = Thing(4, "yellow", "square", "large")
    picture = render(Scene("black", (thing,))).astype(np.float32) / 255
    inside = picture.sum(-1) > 0.5
    picture[inside, 0] -= off
    cell, margins = examine_cell(np.round(picture.clip(0, 1) * 255).astype(np.uint8), 4, "black")
    assert (cell == Cell(thing)) == accepted and (cell.doubt == "a thing has none of the world's colours") != accepted
    assert margins[3] == pytest.approx(np.log(off / 0.12), abs=0.05)
