"""Best of N, and what stays of a run: the transcript as text and JSON, and a record read back from it."""

import json

import pytest
from reflection_fakes import FAULT, RIGHT, QualityVerifier, ScriptedDrawer, ScriptedReflector, picture, quality_of

from omnigen2_core.errors import ReflectionError
from omnigen2_core.reflection.best_of import best_of
from omnigen2_core.reflection.loop import reflect
from omnigen2_core.reflection.opinion import Reflection
from omnigen2_core.reflection.record import Record, Stop
from omnigen2_core.reflection.redraw import Redraw
from omnigen2_core.reflection.task import Task
from omnigen2_core.reflection.transcript import from_dict, to_dict, to_json, to_text

TASK = Task("a red circle, 红色", (picture(1),))
SETTINGS = {"steps": 20, "text_guidance": 4.0, "solver": "euler"}


@pytest.fixture
def record():
    tools = ScriptedDrawer(40, 60, 50), ScriptedReflector(FAULT), QualityVerifier(blind=[50])
    return reflect(TASK, *tools, rounds=3, redraw=Redraw.EDIT, seed=5, settings=SETTINGS)


def pictures(record):
    return [entry.picture for entry in record.rounds]


# Best of N


def test_best_of_n_ranks_the_pictures_by_score():
    drawer = ScriptedDrawer(40, 90, 60)
    record = best_of(TASK, drawer, QualityVerifier(), [3, 4, 5], settings=SETTINGS)
    assert [(entry.seed, entry.score.value) for entry in record.ranked()] == [(4, 0.9), (5, 0.6), (3, 0.4)]
    assert record.stop is Stop.ALL_DRAWN
    assert drawer.calls == [(TASK.instruction, TASK.references, seed) for seed in (3, 4, 5)]
    assert all(entry.reflection is None and entry.settings == SETTINGS for entry in record.rounds)


def test_the_best_of_close_ones_is_found_side_by_side_and_comes_first():
    record = best_of(TASK, ScriptedDrawer(90, 88, 20), QualityVerifier(preference=1), [1, 2, 3])
    assert [quality_of(entry.picture) for entry in record.ranked()] == [88, 90, 20]


def test_equal_pictures_keep_their_order_and_unscored_ones_come_last():
    record = best_of(TASK, ScriptedDrawer(30, 60, 50, 60), QualityVerifier(blind=[50]), [1, 2, 3, 4])
    assert [entry.index for entry in record.ranked()] == [1, 3, 0, 2]


def test_cancelling_best_of_n_keeps_the_pictures_that_are_drawn():
    record = Record(TASK)
    with pytest.raises(KeyboardInterrupt):
        best_of(record, ScriptedDrawer(40, 60, KeyboardInterrupt()), QualityVerifier(), [1, 2, 3])
    assert [entry.index for entry in record.ranked()] == [1, 0] and record.stop is Stop.INTERRUPTED


def test_wrong_seeds_are_refused():
    for seeds, message in (([], "Got 0 seeds"), (range(65), "Got 65 seeds"), ([1, 2, 1], "one comes twice")):
        with pytest.raises(ReflectionError, match=message):
            best_of(TASK, ScriptedDrawer(), QualityVerifier(), seeds)


# The transcript


def test_json_tells_of_every_round_what_was_said_and_how_it_was_made(record):
    values = json.loads(to_json(record))
    assert values["instruction"] == "a red circle, 红色" and values["best"] == 1 and values["stop"] == Stop.NO_HELP.value
    second = values["rounds"][1]
    assert second["reflection"]["verdict"] == "not satisfied"
    assert second["reflection"]["correction"] == "Make the circle red"
    assert second["score"]["value"] == 0.6 and second["seed"] == 6 and second["parent"] == 0
    assert second["settings"] == SETTINGS
    assert set(second["seconds"]) == {"draw", "reflect", "verify"} and all(t >= 0 for t in second["seconds"].values())


def test_text_tells_the_same_to_people(record):
    text = to_text(record)
    for part in ("Round 1: edited after round 0, seed 6", "Score: 0.600", "Verdict: not satisfied", "Problem: the circle"):
        assert part in text
    assert "no answer  Is it good?" in text, "of the last round"
    assert "Best: round 1." in text and "steps 20" in text


def test_rounds_may_go_by_another_name(record):
    text = to_text(record, lambda index: f"picture {index + 1}")
    assert "Picture 2: edited after picture 1, seed 6" in text and "Best: picture 2." in text
    assert "Round" not in text


def test_no_opinion_shows_what_the_model_really_said():
    unsure = Reflection.no_opinion("The answer could not be used.", ["Nice!\nRound 9: drawn", ""])
    text = to_text(reflect(TASK, ScriptedDrawer(40), ScriptedReflector(unsure), QualityVerifier()))
    assert "no opinion - The answer could not be used." in text
    assert "Answer: Nice! / Round 9: drawn" in text and "Answer: (empty)" in text
    assert "\nRound 9" not in text, "a model cannot forge a round"


def test_a_record_comes_back_from_its_json_and_can_be_gone_on_with(record):
    record.pick(2)
    back = from_dict(json.loads(to_json(record)), pictures(record), TASK.references)
    assert to_dict(back) == to_dict(record)
    reflect(back, ScriptedDrawer(70), ScriptedReflector(RIGHT), QualityVerifier(), rounds=1, correction="Make it red")
    assert back.rounds[3].parent == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.update(format="other"),
        lambda v: v.update(version=2),
        lambda v: v.pop("rounds"),
        lambda v: v.update(best=3),
        lambda v: v.update(best=-1),
        lambda v: v.update(stop="bored"),
        lambda v: v["rounds"][0].update(parent=1),
        lambda v: v["rounds"][1].update(parent=1),
        lambda v: v["rounds"][0].update(prompt={"text": 1}),
        lambda v: v["rounds"][0].update(origin="found"),
        lambda v: v["rounds"][0].update(score=None),
        lambda v: v["rounds"][0]["reflection"].update(verdict="perhaps"),
        lambda v: v["rounds"][0]["reflection"].update(correction=""),
        lambda v: v["rounds"][0]["reflection"].update(correction=5),
        lambda v: v["rounds"][0]["reflection"].update(problem=["it is blue"]),
        lambda v: v["rounds"][0]["reflection"].update(answers=[5]),
        lambda v: v["rounds"][0]["reflection"].update(answers="blue"),
        lambda v: v["rounds"][0].update(settings=[]),
        lambda v: v["rounds"][0].update(seconds=[]),
        lambda v: v["rounds"][0].update(seconds={"draw": "1"}),
        lambda v: v["rounds"][0].update(seconds={"draw": 10**400}),
        lambda v: v["rounds"][0].update(seconds={"draw": float("nan")}),
        lambda v: v["rounds"][0].update(seed="5"),
        lambda v: v["rounds"][0].update(helped="no"),
        lambda v: v["rounds"][0]["score"].update(note=None),
        lambda v: v["rounds"][0]["score"]["checks"][0].update(probability="x"),
        lambda v: v["rounds"][0]["score"]["checks"][0].update(probability=1.5),
        lambda v: v["rounds"][0]["score"]["checks"][0].update(probability=True),
        lambda v: v["rounds"][0]["score"]["checks"][0].update(question=None),
        lambda v: v["rounds"][0]["score"]["checks"][0].update(answer=5),
        lambda v: v.update(instruction=5),
    ],
)
def test_a_damaged_transcript_is_refused_in_one_sentence(record, damage):
    values = json.loads(to_json(record))
    damage(values)
    with pytest.raises(ReflectionError, match="run the loop again"):
        from_dict(values, pictures(record), TASK.references)


def test_pictures_and_rounds_must_match(record):
    with pytest.raises(ReflectionError, match="3 rounds and 1 references, but there are 2 pictures"):
        from_dict(to_dict(record), pictures(record)[:2], TASK.references)


def test_settings_that_no_transcript_can_keep_are_refused_before_drawing():
    drawer = ScriptedDrawer(40)
    for value in (object(), float("nan")):
        with pytest.raises(ReflectionError, match="settings cannot be kept"):
            best_of(TASK, drawer, QualityVerifier(), [1], settings={"model": value})
    assert drawer.calls == []
