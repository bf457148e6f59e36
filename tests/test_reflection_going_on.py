"""The reflection loop told of, cancelled, and gone on with: nothing that is finished is lost."""

import pytest
from reflection_fakes import (
    FAULT,
    MISPLACED,
    RIGHT,
    TASK,
    QualityVerifier,
    ScriptedDrawer,
    picture,
    qualities,
    quality_of,
    run,
)

from omnigen2_core.errors import ReflectionError
from omnigen2_core.reflection.bench import UNJUDGED, Stage
from omnigen2_core.reflection.best_of import best_of
from omnigen2_core.reflection.opinion import Reflection, Verdict
from omnigen2_core.reflection.record import Record, Stop
from omnigen2_core.reflection.redraw import Origin, Redraw

# Callbacks and cancelling


def test_callbacks_tell_of_every_stage_and_round_as_they_come():
    told = []
    run(
        [40, 60], FAULT, rounds=1, redraw=Redraw.EDIT,
        on_stage=lambda stage, index: told.append((stage, index)),
        on_round=lambda entry, record: told.append((entry.index, record.best_index)),
    )  # fmt: skip
    first = [(Stage.DRAW, 0), (Stage.REFLECT, 0), (Stage.VERIFY, 0), (0, 0)]
    assert told[:4] == first and told[4:7] == [(Stage.DRAW, 1), (Stage.REFLECT, 1), (Stage.VERIFY, 1)]
    assert told[-1] == (1, 1)


class Cancelled(Exception):
    """What a host raises when the user cancels."""


def test_cancel_while_drawing_round_two_keeps_the_first_two():
    record = Record(TASK)
    with pytest.raises(Cancelled):
        run([40, 60, Cancelled()], FAULT, task=record, rounds=5)
    assert qualities(record) == [40, 60] and record.best_index == 1
    assert record.stop is Stop.INTERRUPTED


def test_cancel_between_rounds_by_the_callback_keeps_the_round_it_was_told_of():
    record = Record(TASK)

    def cancel(entry, record):
        if entry.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([40, 60, 80], FAULT, task=record, rounds=5, on_round=cancel)
    assert qualities(record) == [40, 60] and record.best_index == 1


def test_a_picture_that_is_drawn_but_not_judged_when_cancelled_is_kept_and_is_not_the_best():
    record = Record(TASK)
    with pytest.raises(Cancelled):
        run([40, 99], FAULT, Cancelled(), task=record, rounds=5)
    assert qualities(record) == [40, 99] and record.best_index == 0
    left = record.rounds[1]
    assert left.reflection.verdict is Verdict.NO_OPINION and left.reflection.note == UNJUDGED
    assert left.score.value is None


class Leaving(QualityVerifier):
    """Cancels at its second score, or at the first comparison of pictures."""

    def __init__(self, comparing):
        super().__init__()
        self.comparing, self.scored = comparing, 0

    def score(self, image):
        self.scored += 1
        if self.scored == 2 and not self.comparing:
            raise Cancelled
        return super().score(image)

    def prefer(self, first, second):
        raise Cancelled


def test_what_was_said_of_a_picture_by_the_time_of_cancelling_is_kept():
    for verifier, value in ((Leaving(comparing=False), None), (Leaving(comparing=True), 0.42)):
        record = Record(TASK)
        with pytest.raises(Cancelled):
            run([40, 42, 90], FAULT, MISPLACED, task=record, rounds=5, verifier=verifier)
        left = record.rounds[1]
        assert left.reflection is MISPLACED and left.score.value == value and record.best_index == 0
        record.pick(1)
        _, drawer = run([90], RIGHT, task=record, rounds=1)
        assert record.rounds[1].reflection is MISPLACED and record.rounds[1].score.value == 0.42, "only what lacks is asked"
        assert record.best_index == 2 and "Move the circle" in drawer.calls[0][0]


def test_a_run_that_fails_while_it_looks_at_a_picked_round_keeps_what_was_said():
    record = Record(TASK)
    record.give(picture(50))
    verifier = Leaving(comparing=False)
    verifier.scored = 1
    with pytest.raises(Cancelled):
        run([], FAULT, task=record, verifier=verifier)
    assert record.rounds[0].reflection is FAULT and not record.rounds[0].judged


def test_cancel_before_anything_is_drawn_leaves_an_empty_record_that_says_so():
    record = Record(TASK)
    with pytest.raises(Cancelled):
        run([Cancelled()], FAULT, task=record)
    assert record.rounds == [] and record.stop is Stop.INTERRUPTED
    with pytest.raises(ReflectionError, match="No picture was finished"):
        record.best


def test_a_cancelled_run_can_be_gone_on_with():
    record = Record(TASK)
    with pytest.raises(Cancelled):
        run([40, Cancelled()], FAULT, task=record, rounds=5)
    run([80], RIGHT, task=record, rounds=1)
    assert qualities(record) == [40, 80] and record.stop is Stop.SATISFIED


def test_a_first_picture_left_unjudged_is_judged_when_going_on():
    record = Record(TASK)
    with pytest.raises(Cancelled):
        run([40], Cancelled(), task=record)
    run([80], FAULT, RIGHT, task=record, rounds=1)
    assert record.rounds[0].score.value == 0.4 and record.best_index == 1


def test_the_best_of_several_drawings_is_looked_at_before_it_is_corrected():
    record, told = best_of(TASK, ScriptedDrawer(40, 60), QualityVerifier(), [1, 2]), []
    run([80], FAULT, RIGHT, task=record, rounds=1, on_round=lambda entry, record: told.append(entry.index))
    looked_at, corrected = record.rounds[1:]
    assert looked_at.reflection is FAULT and looked_at.helped and {"draw", "reflect"} <= set(looked_at.seconds)
    assert corrected.parent == 1 and record.best_index == 2 and told == [1, 2]


# Going on by hand


def test_going_on_from_a_round_that_was_picked_by_hand():
    record, _ = run([40, 60, 30], FAULT, rounds=5, redraw=Redraw.EDIT)
    assert record.best_index == 1
    record.pick(2)
    run([50], FAULT, task=record, rounds=1, redraw=Redraw.EDIT)
    assert record.rounds[3].parent == 2
    assert record.best_index == 3, "better than the picked one, whatever a judge thought of the ones not picked"


def test_going_on_draws_with_seeds_that_were_not_used():
    record, first = run([40, 30], MISPLACED, rounds=1, redraw=Redraw.AGAIN, seed=7)
    _, second = run([50], MISPLACED, task=record, rounds=1, redraw=Redraw.AGAIN, seed=7)
    assert [seed for _, _, seed in first.calls + second.calls] == [7, 8, 9]


def test_the_picked_round_stays_the_result_when_going_on_does_not_help():
    record, _ = run([40, 60], FAULT, rounds=1, redraw=Redraw.EDIT)
    record.pick(0)
    run([20], FAULT, task=record, rounds=3, redraw=Redraw.EDIT)
    assert record.best_index == 0 and record.stop is Stop.NO_HELP


def test_the_users_own_correction_is_followed_without_asking():
    record, _ = run([40], RIGHT, rounds=2)
    _, drawer = run([60], RIGHT, task=record, rounds=2, correction=" Make the circle darker ")
    assert drawer.calls[0][0] == "Make the circle darker" and record.best_index == 1


def test_scores_by_other_questions_are_none_to_compare_with():
    record, _ = run([40], FAULT, rounds=0)
    verifier = QualityVerifier()
    verifier.questions = ("Is it as asked?",)
    record.pick(0)
    run([60], RIGHT, task=record, rounds=1, verifier=verifier)
    assert [entry.score.checks[0].question for entry in record.rounds] == ["Is it as asked?"] * 2
    assert record.rounds[0].reflection is FAULT, "what was said stays"


def test_a_judge_that_cannot_tell_leaves_an_earlier_score_alone():
    record, _ = run([40], FAULT, rounds=0)
    verifier = QualityVerifier(blind=[60])
    verifier.questions = ("Is it as asked?",)
    record.pick(0)
    run([60], RIGHT, task=record, rounds=1, redraw=Redraw.EDIT, verifier=verifier)
    assert record.rounds[0].score.value == 0.4 and record.best_index == 0


def test_going_on_from_a_picture_that_is_no_round():
    record = Record(TASK)
    record.give(picture(50))
    _, drawer = run([80], FAULT, RIGHT, task=record, rounds=1)
    assert [entry.origin for entry in record.rounds] == [Origin.GIVEN, Origin.EDITED]
    assert record.rounds[0].score.value == 0.5 and quality_of(drawer.calls[0][1][0]) == 50


def test_a_round_of_which_there_was_no_opinion_is_judged_anew_when_it_is_gone_on_from():
    record, _ = run([40], Reflection.no_opinion("The encoder cannot look."), rounds=2)
    assert record.stop is Stop.NO_OPINION
    record.pick(0)
    _, drawer = run([80], FAULT, RIGHT, task=record, rounds=2)
    assert record.rounds[0].reflection is FAULT and record.stop is Stop.SATISFIED and len(drawer.calls) == 1


def test_a_round_that_does_not_exist_cannot_be_picked():
    record, _ = run([40], RIGHT)
    for index in (1, -1):
        with pytest.raises(ReflectionError, match=f"Round {index} was picked, but there are 1"):
            record.pick(index)
