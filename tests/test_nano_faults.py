"""Faults are found where pictures are wrong, and their words name them and what mends them."""

import math
import random

import numpy as np
from PIL import Image

from omnigen2_core.nano.drawn import HARD, draw_own, load_own
from omnigen2_core.nano.faults import RIGHT, Spoiled, cells_of, corrections, draw_spoiled, find_faults, leeway, reflection, render_spoiled, touched
from omnigen2_core.nano.judge import look, look_at_cells, matches
from omnigen2_core.nano.world import DEFAULT_SIZE, PLACES, Scene, Thing, cell_box, draw_scene, render
from omnigen2_core.reflection.opinion import Verdict
from omnigen2_core.reflection.trained import Written, read

RED_CIRCLE = Thing(0, "red", "circle", "small")
BLUE_RING = Thing(7, "blue", "ring", "large")
WANTED = Scene("white", (RED_CIRCLE, BLUE_RING))


def faults_in(wanted, picture):
    return find_faults(wanted, *look_at_cells(picture))


def test_a_right_picture_has_none_and_is_said_to_be_right():
    assert faults_in(WANTED, render(WANTED)) == []
    assert reflection([]) == RIGHT


def test_each_fault_is_named_with_what_is_seen_and_what_mends_it():
    shown = Scene("white", (RED_CIRCLE.but(colour="green"), Thing(4, "black", "square", "large")))
    assert reflection(faults_in(WANTED, render(shown))) == (
        "Wrong at top left: small green circle, middle: large black square, bottom: nothing.\n"
        "put a small red circle at the top left, clear the middle, put a large blue ring at the bottom"
    )


def test_a_wrong_ground_is_told_apart_from_its_things():
    found = faults_in(WANTED, render(Scene("yellow", WANTED.things)))
    assert [fault.place for fault in found] == [None]
    assert corrections(random.Random(0), found) == "make the background white"


def test_a_picture_has_the_more_leeway_the_further_it_is_from_being_judged_otherwise():
    clear = render(WANTED)
    left, top, right, bottom = cell_box(BLUE_RING.place, *DEFAULT_SIZE)

    def faded(share):
        """The picture with its blue ring mixed with the ground by this share."""
        picture = clear.astype(float)
        cell = picture[top:bottom, left:right]
        cell += share * (255 - cell)
        return picture.round().astype(np.uint8)

    last_right = next(i for i in range(100) if faults_in(WANTED, faded((i + 1) / 100)))
    near, wrong = leeway(WANTED, faded(last_right / 100)), leeway(WANTED, faded((last_right + 1) / 100))
    assert not faults_in(WANTED, faded(last_right / 100))
    assert 0 <= near < 0.1 and 0 <= wrong < 0.1
    assert leeway(WANTED, clear) > 3 * near
    assert leeway(WANTED, faded((last_right + 8) / 100)) > 3 * wrong
    assert leeway(WANTED, render(Scene("yellow", WANTED.things))) == math.inf
    assert leeway(WANTED, render(Scene("white", (RED_CIRCLE, BLUE_RING.but(colour="green"))))) == math.inf
    assert leeway(WANTED, render(Scene("white", (RED_CIRCLE,)))) == math.inf
    both = faded((last_right + 1) / 100)
    both[:48, :48] = 255
    assert leeway(WANTED, both) == math.inf, "the clearest fault decides"
    other = render(Scene("white", (RED_CIRCLE, BLUE_RING.but(shape="circle"))))
    assert 0 < leeway(WANTED, other) < math.inf


def test_spoiled_pictures_are_seen_alike_with_and_without_looking_at_every_cell():
    rng = random.Random(11)
    faultless = 0
    for _ in range(60):
        wanted = draw_scene(rng, rng.randint(1, 4))
        spoiled = draw_spoiled(rng, wanted)
        picture = render_spoiled(spoiled, 96, 96)
        assert cells_of(spoiled, picture) == look_at_cells(picture)[1]
        faults = find_faults(wanted, spoiled.scene.ground, cells_of(spoiled, picture))
        assert matches(look(picture).scene, wanted) == (not faults)
        faultless += not faults
    assert 15 < faultless < 45


def test_following_the_corrections_mends_the_scene():
    rng = random.Random(13)
    for _ in range(40):
        wanted = draw_scene(rng, 3)
        spoiled = draw_spoiled(rng, wanted)
        cells = cells_of(spoiled, render_spoiled(spoiled, 96, 96))
        faults = find_faults(wanted, spoiled.scene.ground, cells)
        things = {place: cell.thing for place, cell in enumerate(cells)}
        things.update({fault.place: fault.wanted for fault in faults if fault.place is not None})
        mended = Scene(wanted.ground, tuple(thing for thing in things.values() if thing))
        assert mended == wanted
        assert {thing.place for thing in touched(faults)} == {fault.place for fault in faults} - {None}
        assert len([part for part in corrections(rng, faults).split(", ") if part]) == len(faults)


def test_every_reflection_is_an_opinion_to_those_who_read_it():
    rng = random.Random(19)
    for _ in range(200):
        wanted = draw_scene(rng, rng.randint(1, 4))
        spoiled = draw_spoiled(rng, wanted)
        faults = find_faults(wanted, spoiled.scene.ground, cells_of(spoiled, render_spoiled(spoiled, 96, 96)))
        words = reflection(faults)
        said = read(Written(words, announces_picture=bool(faults), ends_turn=not faults))
        assert said.verdict is (Verdict.UNSATISFIED if faults else Verdict.SATISFIED), words


def test_a_spoiled_picture_differs_from_its_scene_only_in_its_spots():
    rng = random.Random(17)
    spoiled = next(s for s in (draw_spoiled(rng, draw_scene(rng, 4)) for _ in range(500)) if len(s.spots) == 1)
    different = (render_spoiled(spoiled, 96, 96) != render_spoiled(Spoiled(spoiled.scene), 96, 96)).any(axis=2)
    cells = different.reshape(3, 32, 3, 32).any(axis=(1, 3)).ravel()
    assert [place for place in range(len(PLACES)) if cells[place]] == [spoiled.spots[0].place]


class Renders:
    """A pipeline that draws a white square for every prompt."""

    def generate(self, prompts, seeds, size, steps, references=None, guidance=None):
        return [Image.fromarray(np.full((size[1], size[0], 3), 246, np.uint8)) for _ in prompts]


def test_own_pictures_come_back_with_what_the_judge_saw_in_them(tmp_path):
    draw_own(Renders(), tmp_path, 5, seed=3)
    drawn = load_own(tmp_path)
    assert [d.prompt for d in drawn[:48]] == [d.prompt for d in drawn[48:]], "all are wrong, so all are mended once"
    assert all(d.ground == "white" and not any(cell.thing or cell.doubt for cell in d.cells) for d in drawn)
    draw_own(Renders(), tmp_path, 5, seed=3, kinds=HARD)
    both = load_own(tmp_path)
    assert len(both) > len(drawn) and {len(d.wanted.things) for d in both[len(drawn) :]} == {4}, "kept beside the others"
    missing = [fault for fault in find_faults(drawn[0].wanted, drawn[0].ground, drawn[0].cells) if fault.place is not None]
    assert {fault.wanted for fault in missing} == set(drawn[0].wanted.things)
