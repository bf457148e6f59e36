"""The reflection loop: draws, looks, corrects; ends when that does not help; never returns what it judged worse."""

import random

import pytest
from reflection_fakes import (
    FAULT,
    MISPLACED,
    RIGHT,
    TASK,
    QualityVerifier,
    ScriptedDrawer,
    ScriptedReflector,
    picture,
    qualities,
    quality_of,
    run,
)

from omnigen2_core.errors import PromptError, ReflectionError
from omnigen2_core.reflection.best_of import best_of
from omnigen2_core.reflection.loop import reflect
from omnigen2_core.reflection.opinion import Reflection, Scope, Verdict
from omnigen2_core.reflection.record import Stop
from omnigen2_core.reflection.redraw import Origin, Redraw, ways
from omnigen2_core.reflection.score import Check, Score
from omnigen2_core.reflection.task import Task


def test_a_right_picture_is_drawn_once():
    record, drawer = run([90], RIGHT, rounds=5)
    assert record.stop is Stop.SATISFIED and len(drawer.calls) == 1
    assert record.best.reflection.verdict is Verdict.SATISFIED


def test_a_wrong_picture_is_corrected_until_it_is_right():
    record, _ = run([40, 60, 90], FAULT, FAULT, RIGHT, rounds=5, redraw=Redraw.EDIT)
    assert qualities(record) == [40, 60, 90]
    assert record.stop is Stop.SATISFIED and record.best_index == 2


def test_rounds_are_the_corrections_at_most():
    record, _ = run([40, 60, 70, 90], FAULT, rounds=2, redraw=Redraw.EDIT)
    assert qualities(record) == [40, 60, 70] and record.stop is Stop.OUT_OF_ROUNDS
    record, _ = run([10, 20, 30, 40, 50], FAULT, rounds=2)
    assert [entry.parent for entry in record.rounds] == [None, 0, 0, 2, 2] and record.stop is Stop.OUT_OF_ROUNDS


def test_no_rounds_draw_and_judge_one_picture():
    record, _ = run([40], FAULT, rounds=0)
    assert record.stop is Stop.OUT_OF_ROUNDS
    assert record.best.score.value == 0.4 and record.best.reflection is FAULT


@pytest.mark.parametrize("rounds", [-1, 6])
def test_other_numbers_of_rounds_are_refused_before_anything_is_drawn(rounds):
    drawer = ScriptedDrawer()
    with pytest.raises(ReflectionError, match=f"rounds is {rounds}, .*0 to 5"):
        reflect(TASK, drawer, ScriptedReflector(FAULT), QualityVerifier(), rounds=rounds)
    assert drawer.calls == []


def test_an_empty_instruction_is_refused():
    with pytest.raises(PromptError, match="instruction is empty"):
        Task(" \n")


# A wrong reflection that was followed


@pytest.mark.parametrize("redraw", [Redraw.EDIT, Redraw.AGAIN])
def test_a_round_that_makes_it_worse_is_set_aside_and_ends_a_run_that_has_one_way(redraw):
    record, drawer = run([60, 30, 90], FAULT, rounds=5, redraw=redraw)
    assert record.stop is Stop.NO_HELP and len(drawer.calls) == 2
    assert quality_of(record.best.picture) == 60
    assert [entry.helped for entry in record.rounds] == [None, False]


@pytest.mark.parametrize(("said", "ways"), [(FAULT, [Origin.EDITED, Origin.AGAIN]), (MISPLACED, [Origin.AGAIN, Origin.EDITED])])
def test_by_itself_it_follows_a_reflection_in_both_ways_and_once_more_before_it_gives_up(said, ways):
    record, drawer = run([60, 30, 40, 50, 90], said, rounds=5)
    assert record.stop is Stop.NO_HELP and [entry.origin for entry in record.rounds[1:]] == [*ways, Origin.AGAIN]
    assert len({seed for _, _, seed in drawer.calls}) == 4, "a third drawing with a seed of before would be one of before"
    assert quality_of(record.best.picture) == 60
    edited = next(references for _, references, _ in drawer.calls if references)
    assert quality_of(edited[0]) == 60, "what is corrected is the best, not what was set aside"


def test_where_the_first_way_makes_it_right_the_other_is_not_gone():
    record, drawer = run([20, 70], FAULT, RIGHT, rounds=5)
    assert record.stop is Stop.SATISFIED and len(drawer.calls) == 2


def test_of_both_ways_the_better_picture_is_gone_on_with():
    record, _ = run([20, 40, 30, 70], FAULT, FAULT, FAULT, RIGHT, rounds=5)
    assert [(entry.parent, entry.helped) for entry in record.rounds] == [(None, None), (0, True), (0, False), (1, True)]
    assert record.stop is Stop.SATISFIED and record.best_index == 3


def test_the_last_drawing_is_gone_on_with_where_neither_way_made_it_better():
    record, _ = run([60, 30, 40, 70, 90], FAULT, FAULT, FAULT, FAULT, RIGHT, rounds=2)
    assert [(entry.parent, entry.helped) for entry in record.rounds[1:]] == [(0, False), (0, False), (0, True), (3, True)]
    assert record.stop is Stop.SATISFIED and record.best_index == 4


def test_both_ways_begin_at_the_picture_that_was_reflected_on():
    _, drawer = run([20, 40, 70], MISPLACED, FAULT, RIGHT, rounds=1)
    prompt, references, _ = drawer.calls[2]
    assert prompt == MISPLACED.correction and [quality_of(image) for image in references] == [20]


def test_a_round_that_changes_nothing_does_not_help():
    record, _ = run([60, 60], FAULT, rounds=5, redraw=Redraw.EDIT)
    assert record.stop is Stop.NO_HELP and record.best_index == 0


def test_whatever_happens_the_result_is_never_clearly_worse_than_an_earlier_round():
    rng = random.Random(4)
    ends = set()
    for _ in range(400):
        drawn = [rng.randrange(101) for _ in range(16)]
        said = [rng.choice([FAULT, MISPLACED, RIGHT, Reflection.no_opinion("?")]) for _ in range(16)]
        said[0] = FAULT
        verifier = QualityVerifier(preference=rng.choice([None, 0, 1]))
        record, _ = run(drawn, *said, verifier=verifier, rounds=5, redraw=rng.choice(list(Redraw)))
        assert quality_of(record.best.picture) >= max(qualities(record)) - 5
        ends.add(record.stop)
    assert {Stop.SATISFIED, Stop.NO_HELP, Stop.NO_OPINION} <= ends


# Over-reflection


def test_a_fault_that_the_verifier_is_sure_is_none_is_not_followed():
    record, drawer = run([98], FAULT, rounds=5)
    assert record.stop is Stop.OVERRULED and len(drawer.calls) == 1
    assert record.best.reflection.verdict is Verdict.UNSATISFIED, "what the model said is kept as it is"


def test_overruling_can_be_switched_off():
    record, _ = run([98, 99], FAULT, RIGHT, rounds=1, overrule=1.1)
    assert len(record.rounds) == 2


def test_a_requirement_without_an_answer_overrules_nothing():
    record, drawer = run([98, 97], FAULT, verifier=QualityVerifier(blind=[98]), rounds=1, redraw=Redraw.EDIT)
    assert len(drawer.calls) == 2


# A wrong picture called right


@pytest.mark.parametrize("held", [0, 20])
def test_a_picture_that_is_called_right_against_the_verifier_is_drawn_again(held):
    record, drawer = run([held, 90], RIGHT, rounds=5)
    assert qualities(record) == [held, 90] and record.stop is Stop.SATISFIED and record.best_index == 1
    assert drawer.calls[1] == ("a red circle", (), 1) and record.rounds[1].origin is Origin.AGAIN
    assert record.rounds[0].reflection is RIGHT, "what the model said is kept as it is"


@pytest.mark.parametrize("options", [{"doubt": 0.0}, {"redraw": Redraw.EDIT}])
def test_where_nothing_is_doubted_or_nothing_can_be_edited_it_passes(options):
    record, drawer = run([20], RIGHT, rounds=5, **options)
    assert record.stop is Stop.SATISFIED and len(drawer.calls) == 1


def test_a_requirement_without_an_answer_casts_no_doubt():
    record, drawer = run([20], RIGHT, verifier=QualityVerifier(blind=[20]), rounds=5)
    assert record.stop is Stop.SATISFIED and len(drawer.calls) == 1


def test_a_doubted_picture_that_is_not_bettered_is_what_remains():
    record, drawer = run([20, 10, 5], RIGHT, rounds=5)
    assert record.stop is Stop.NO_HELP and record.best_index == 0 and len(drawer.calls) == 3


def test_no_opinion_is_shown_and_ends_the_run_rather_than_guessing():
    unsure = Reflection.no_opinion("The answer could not be used.", ["It is nice."])
    record, drawer = run([40], unsure, rounds=5)
    assert record.stop is Stop.NO_OPINION and len(drawer.calls) == 1
    assert record.best.reflection.answers == ("It is nice.",)


# What takes the lead when scores are close


class Questions(QualityVerifier):
    """Several questions, answered as the picture's quality has it in `answers`."""

    questions = ("1?", "2?", "3?", "4?")

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def score(self, image):
        return Score(tuple(map(Check, self.questions, self.answers[quality_of(image)])))


def test_a_picture_of_which_less_could_be_told_is_not_ahead_for_that():
    answers = {1: (1, 1, 1, 0), 2: (1, None, None, None), 3: (None, 1, 1, 1), 4: (None, None, None, None), 5: (0, 1, 1, 0)}
    record = best_of(TASK, ScriptedDrawer(1, 2), Questions(answers), [1, 2])
    assert record.rounds[1].score.value == 1.0 and record.best_index == 0, "they agree in what both have an answer to"
    record = best_of(TASK, ScriptedDrawer(1, 3), Questions(answers), [1, 2])
    assert record.best_index == 1, "better in what both have an answer to"
    record = best_of(TASK, ScriptedDrawer(5, 1, 2, 4), Questions(answers), [1, 2, 3, 4])
    assert [quality_of(entry.picture) for entry in record.ranked()] == [1, 5, 2, 4]


def test_close_pictures_are_compared_side_by_side():
    liked = QualityVerifier(preference=1)
    record, _ = run([60, 57], FAULT, RIGHT, verifier=liked, rounds=1)
    assert liked.compared == [(60, 57)] and record.best_index == 1


def test_the_side_by_side_judgement_can_keep_the_earlier_one():
    record, _ = run([60, 63], FAULT, RIGHT, verifier=QualityVerifier(preference=0), rounds=1, redraw=Redraw.EDIT)
    assert record.best_index == 0 and record.stop is Stop.NO_HELP


def test_clear_differences_need_no_comparison():
    verifier = QualityVerifier(preference=0)
    record, _ = run([60, 70], FAULT, RIGHT, verifier=verifier, rounds=1)
    assert verifier.compared == [] and record.best_index == 1


def test_close_and_undecided_the_verdict_decides():
    record, _ = run([60, 58], FAULT, RIGHT, rounds=1)
    assert record.best_index == 1 and record.stop is Stop.SATISFIED


def test_close_undecided_and_no_verdict_between_them_any_difference_of_the_scores_decides():
    record, _ = run([60, 63], FAULT, rounds=1, redraw=Redraw.EDIT)
    assert record.best_index == 1
    record, _ = run([60, 57], FAULT, rounds=1, redraw=Redraw.EDIT)
    assert record.best_index == 0


def test_a_row_of_close_comparisons_does_not_lead_downhill():
    record, _ = run([60, 57, 54], FAULT, verifier=QualityVerifier(preference=1), rounds=5, redraw=Redraw.EDIT)
    assert record.best_index == 1 and record.stop is Stop.NO_HELP


def test_a_picture_that_could_not_be_scored_never_takes_the_lead():
    verifier = QualityVerifier(preference=1, blind=[90])
    record, _ = run([60, 90], FAULT, RIGHT, verifier=verifier, rounds=1, redraw=Redraw.EDIT)
    assert record.best_index == 0


def test_a_picture_that_could_not_be_scored_gives_way_to_one_that_was():
    record, _ = run([40, 60], FAULT, verifier=QualityVerifier(blind=[40]), rounds=1, redraw=Redraw.EDIT)
    assert record.best_index == 1
    best = best_of(TASK, ScriptedDrawer(40, 60, 50), QualityVerifier(blind=[40]), range(3))
    assert [entry.index for entry in best.ranked()] == [1, 2, 0]


def test_the_requirements_are_found_once_for_all_rounds():
    verifier = QualityVerifier()
    run([40, 60, 80], FAULT, verifier=verifier, rounds=2)
    assert verifier.tasks == [TASK]


# How corrections are carried out


def test_by_itself_it_edits_attributes_and_draws_layouts_again():
    record, drawer = run([20, 40, 30, 70], FAULT, MISPLACED, RIGHT, RIGHT, rounds=2)
    assert [entry.origin for entry in record.rounds] == [Origin.DRAWN, Origin.EDITED, Origin.AGAIN, Origin.AGAIN]
    _, edit, _, again = drawer.calls
    assert edit[0] == "Make the circle red" and [quality_of(image) for image in edit[1]] == [20]
    assert again[0].startswith("a red circle") and "Move the circle to the right" in again[0] and again[1] == ()


@pytest.mark.parametrize(
    ("redraw", "said", "origin"), [(Redraw.EDIT, MISPLACED, Origin.EDITED), (Redraw.AGAIN, FAULT, Origin.AGAIN)]
)
def test_the_user_may_decide(redraw, said, origin):
    record, _ = run([20, 40], said, RIGHT, rounds=1, redraw=redraw)
    assert record.rounds[1].origin is origin


@pytest.mark.parametrize(
    ("words", "origin"),
    [
        ("Make the circle red", Origin.EDITED),
        ("Move the circle to the left", Origin.AGAIN),
        ("There should be exactly three circles", Origin.AGAIN),
        ("把圆放在右边", Origin.AGAIN),
        ("Give the dog a blue collar", Origin.EDITED),
    ],
)
def test_without_a_named_scope_the_words_of_the_correction_decide(words, origin):
    record, _ = run([20, 40], Reflection.wrong("it is wrong", words), RIGHT, rounds=1)
    assert record.rounds[1].origin is origin


def test_a_correction_that_speaks_of_a_reference_is_drawn_again_with_the_references():
    task = Task("the dog of image 1 on a beach", (picture(1), picture(2)))
    said = Reflection.wrong("another dog", "Use the dog of image 1")
    _, drawer = run([20, 40], said, RIGHT, task=task, rounds=1)
    assert drawer.calls[1][1] == task.references
    plain, drawer = run([20, 40], FAULT, RIGHT, task=task, rounds=1)
    assert plain.rounds[1].origin is Origin.EDITED and len(drawer.calls[1][1]) == 1


@pytest.mark.parametrize(
    "words",
    [
        "Use the dog from the second image",
        "Add the hat in the first photo",
        "Give it the colour of image two",
        "Show the dogs of both images",
        "Use the dog of image #1",
        "Keep the reference's collar",
    ],
)
@pytest.mark.parametrize("scope", [Scope.ATTRIBUTE, None])
def test_a_reference_that_is_named_in_words_is_one_too(words, scope):
    said = Reflection.wrong("another dog", words, scope)
    task = Task("the dog of image 1 on a beach", (picture(1), picture(2)))
    assert ways(task, said, Redraw.AUTO) == (Redraw.AGAIN,)
    assert Redraw.EDIT in ways(Task("a dog on a beach"), said, Redraw.AUTO), "without references the picture is all there is"


def test_a_reflector_may_word_the_whole_prompt():
    said = Reflection.wrong("too few", "Add one", MISPLACED.scope, prompt="two red circles")
    _, drawer = run([20, 40], said, RIGHT, rounds=1)
    assert drawer.calls[1][0] == "two red circles"


def test_every_round_has_a_seed_of_its_own_that_a_host_can_take():
    _, drawer = run([20, 40, 60], MISPLACED, rounds=2, redraw=Redraw.AGAIN, seed=2**64 - 2)
    assert [seed for _, _, seed in drawer.calls] == [2**64 - 2, 2**64 - 1, 0]


def test_an_editor_of_its_own_makes_the_edits():
    editor = ScriptedDrawer(80)
    record, drawer = run([20], FAULT, RIGHT, rounds=1, editor=editor)
    assert len(drawer.calls) == 1 and len(editor.calls) == 1 and qualities(record) == [20, 80]


def test_the_reflector_sees_what_came_before():
    reflector = ScriptedReflector(FAULT, MISPLACED, RIGHT)
    reflect(TASK, ScriptedDrawer(20, 40, 60), reflector, QualityVerifier(), rounds=2, redraw=Redraw.EDIT)
    seen = [[(quality_of(image), said) for image, said in earlier] for earlier in reflector.earlier]
    assert seen == [[], [(20, FAULT)], [(20, FAULT), (40, MISPLACED)]]
