"""What the curves of the sampler's controls count."""

import numpy as np
import pytest
from PIL import Image

from omnigen2_core.nano.controls import CLOSE, prompt_followed, reference_kept
from omnigen2_core.nano.score import Task, judge_task
from omnigen2_core.nano.world import Scene, Thing, render

BEFORE = Scene("red", (Thing(0, "blue", "square", "large"), Thing(8, "white", "ring", "small")))
AFTER = Scene("red", (Thing(0, "green", "square", "large"), Thing(8, "white", "ring", "small")))
TASK = Task("Make the square green", AFTER, (BEFORE,))


def outcome(pixels):
    return judge_task(TASK, 0, Image.fromarray(pixels))


def test_what_an_edit_leaves_alone_is_kept_whatever_it_changes():
    assert reference_kept(outcome(render(AFTER))) == 1.0 == reference_kept(outcome(render(BEFORE)))


@pytest.mark.parametrize(("change", "kept"), [(CLOSE, 1.0), (CLOSE + 1, 0.0)])
def test_a_pixel_is_kept_up_to_a_difference_that_no_eye_tells(change, kept):
    moved = render(AFTER).astype(np.int16)
    moved += np.where(moved > 127, -change, change)
    assert reference_kept(outcome(moved.astype(np.uint8))) == kept


def test_a_pixel_in_eight_cells_is_a_share_of_eight_cells():
    pixels = render(AFTER)
    pixels[:32, 32:64] = 255 - pixels[:32, 32:64]
    assert reference_kept(outcome(pixels)) == pytest.approx(7 / 8)


def test_a_prompt_is_followed_as_far_as_its_things_are_there():
    assert [prompt_followed(outcome(render(scene))) for scene in (AFTER, BEFORE)] == [1.0, 0.5]
    assert prompt_followed(outcome(np.full((96, 96, 3), 128, np.uint8))) == 0.0
