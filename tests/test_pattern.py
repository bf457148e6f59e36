"""The pattern of a run as text: nothing of what was computed is lost."""

import pytest

from omnigen2_core.acceleration.pattern import pattern_of, record_of
from omnigen2_core.acceleration.protocol import Work

RECORD = [
    Work(0, "cond", "full", 32, True),
    Work(0, "ref", "full", 32, True),
    Work(0, "uncond", "full", 32, True),
    Work(1, "cond", "image", 32, False),
    Work(1, "uncond", "skipped", 1, False),
    Work(1, "ref", "omitted"),
    Work(2, "cond", "skipped", 0, True),
]


def test_a_record_as_text_has_a_letter_a_step_for_each_branch():
    assert pattern_of(RECORD) == {"cond": "FIS", "ref": "F-.", "uncond": "Fb."}
    assert pattern_of([]) == {}


def test_a_record_comes_back_from_its_text():
    assert record_of(pattern_of(RECORD), layers=32) == RECORD
    assert record_of({}) == []


def test_what_has_no_letter_is_refused():
    with pytest.raises(ValueError, match="5 of the layers ran at step 0"):
        pattern_of([Work(0, "cond", "skipped", 5, True)])
    with pytest.raises(ValueError, match="'x' at step 1 of cond"):
        record_of({"cond": "Fx"})
