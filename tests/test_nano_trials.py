"""Hard prompts, questions and decisions of `score --reflection`: what each counts as, and what it takes."""

import random
from collections import Counter

import pytest
from PIL import Image
from reflection_fakes import FAULT, RIGHT, QualityVerifier, ScriptedDrawer, ScriptedReflector, picture, quality_of
from talking import golden_assistant, says

from omnigen2_core.assistant import Answer
from omnigen2_core.nano import trials
from omnigen2_core.nano.questions import KINDS
from omnigen2_core.nano.trials import RememberingDrawer, Tools, draw_hard
from omnigen2_core.nano.world import Scene, render
from omnigen2_core.prompts import chat_prompt
from omnigen2_core.reflection import (
    Check,
    Looker,
    Redraw,
    Reflection,
    Score,
    Stop,
    Task,
    Verdict,
    best_of,
    reflect,
    trained_verifier,
)
from omnigen2_core.reflection.redraw import ways
from omnigen2_core.reflection.requirements import whole_question
from omnigen2_core.reflection.trained import Written, read
from omnigen2_core.yes_no import YesNo

# A hard prompt, with stand-ins for all who draw and look


class Clock:
    """Time that passes only where a stand-in works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Studio:
    """Draws a hard prompt right for some seeds; an edit makes it right or, if it `spoils`, wrong.

    Who looks sees everything (`sees` True) or takes every picture for right.
    """

    DRAW, EDIT, REFLECT, VERIFY = 2.0, 3.0, 1.0, 0.5

    def __init__(self, monkeypatch, lucky=(), sees=True, spoils=False):
        self.clock = Clock()
        monkeypatch.setattr("time.perf_counter", self.clock)
        self.hard = draw_hard(5, 0)
        self.lucky, self.sees, self.spoils, self.questions = lucky, sees, spoils, ("?",)
        self.drawn, self.looked = [], []

    def draw(self, prompt, references, seed):
        self.drawn.append(seed - self.hard.seed)
        self.clock.now += self.EDIT if references else self.DRAW
        right = not self.spoils if references else seed - self.hard.seed in self.lucky
        wanted = self.hard.task.wanted
        return Image.fromarray(render(wanted if right else Scene(wanted.ground, wanted.things[1:])))

    def reflect(self, task, shown, earlier=()):
        self.clock.now += self.REFLECT
        return RIGHT if not self.sees or self.hard.is_right(shown) else FAULT

    def examiner(self, task):
        return self

    def score(self, shown):
        self.clock.now += self.VERIFY
        self.looked.append("judge")
        return Score((Check("?", float(not self.sees or self.hard.is_right(shown))),))

    def prefer(self, first, second):
        return None

    def forget(self):
        self.looked.append("forget")

    def trial(self, seeds=3):
        tools = Tools(self.draw, self.reflect, self, assistant=self)
        drawer = RememberingDrawer(tools.draw)
        return trials.make_trial(*trials.run_both(tools, drawer, self.hard, seeds), drawer, self.hard)


def rights(tries):
    return [one.right for one in tries]


def seconds(tries):
    return [one.seconds for one in tries]


def test_one_who_sees_has_a_wrong_picture_mended(monkeypatch):
    trial = Studio(monkeypatch, lucky=(2,)).trial()
    assert not trial.one_shot.right and not trial.accepted and trial.stop is Stop.SATISFIED
    assert rights(trial.loop) == [False, True, True] and rights(trial.best_of) == [False, False, True]


def test_pictures_that_follow_the_same_reflection_are_one_round_with_the_time_of_all(monkeypatch):
    studio = Studio(monkeypatch, lucky=(2,), spoils=True)
    trial = studio.trial()
    look = studio.REFLECT + studio.VERIFY
    assert rights(trial.loop) == [False, True, True] and trial.stop is Stop.SATISFIED
    assert seconds(trial.loop)[1:] == [2 * studio.DRAW + studio.EDIT + 3 * look] * 2


def test_one_who_sees_leaves_a_right_picture_alone(monkeypatch):
    trial = Studio(monkeypatch, lucky=(0,), spoils=True).trial()
    assert trial.one_shot.right and trial.accepted
    assert rights(trial.loop) == [True] * 3 and rights(trial.best_of) == [True] * 3


def test_one_who_sees_nothing_lets_everything_pass(monkeypatch):
    trial = Studio(monkeypatch, lucky=(2,), sees=False).trial()
    assert trial.accepted and rights(trial.loop) == [False] * 3 == rights(trial.best_of)


def test_a_fault_that_the_verifier_overrules_has_passed_and_so_has_no_opinion(monkeypatch):
    for said, stop in ((FAULT, Stop.OVERRULED), (Reflection.no_opinion("?"), Stop.NO_OPINION)):
        studio = Studio(monkeypatch, sees=False)
        monkeypatch.setattr(studio, "reflect", lambda *_, said=said: said)
        trial = studio.trial()
        assert trial.accepted and trial.stop is stop


def test_a_correction_that_is_no_help_has_not_passed(monkeypatch):
    trial = Studio(monkeypatch, spoils=True).trial()
    assert not trial.accepted and trial.stop is Stop.NO_HELP and rights(trial.loop) == [False] * 3


def test_every_way_pays_for_all_its_drawing_and_looking(monkeypatch):
    studio = Studio(monkeypatch, lucky=(2,))
    trial = studio.trial(seeds=4)
    draw, look = studio.DRAW, studio.REFLECT + studio.VERIFY
    assert trial.one_shot.seconds == draw
    assert seconds(trial.loop) == [draw + look, draw + look + studio.EDIT + look, draw + look + studio.EDIT + look]
    assert seconds(trial.best_of) == [n * (draw + studio.VERIFY) for n in (1, 2, 3, 4)]


def test_drawn_until_held_right_ends_with_that_picture_and_its_time(monkeypatch):
    studio = Studio(monkeypatch, lucky=(1,))
    trial = studio.trial(seeds=4)
    assert rights(trial.until) == [False, True, True, True]
    assert seconds(trial.until) == [n * (studio.DRAW + studio.VERIFY) for n in (1, 2, 2, 2)]
    assert Studio(monkeypatch).trial().until == Studio(monkeypatch).trial().best_of, "no picture is held right"


def test_the_first_picture_is_drawn_once_for_all_ways(monkeypatch):
    studio = Studio(monkeypatch)
    studio.trial(seeds=3)
    assert Counter(studio.drawn) == {0: 1, 1: 2, 2: 1}, "the edit has a seed that best of N has too"


def test_no_way_profits_from_what_the_other_has_looked_at(monkeypatch):
    """Pictures that were looked at lately cost less, and both begin with the same."""
    studio = Studio(monkeypatch, lucky=(0,))
    studio.trial(seeds=2)
    assert studio.looked == ["forget", "judge", "forget", "judge", "judge"]


def test_the_drawer_knows_references_by_identity():
    drawer = RememberingDrawer(lambda prompt, references, seed: picture(seed))
    one, twin = picture(1), picture(1)
    assert drawer("p", [one], 7) is drawer("p", (one,), 7) is not drawer("p", [twin], 7)
    assert len({id(drawer(*call)) for call in (("p", [], 7), ("q", [], 7), ("p", [], 8), ("p", [one, one], 7))}) == 4


def test_fewer_rounds_and_fewer_seeds_would_have_given_what_one_long_run_tells():
    rng = random.Random(2)
    for _ in range(60):
        qualities = [rng.randrange(101) for _ in range(5)]
        said = [FAULT, *(rng.choice([FAULT, FAULT, RIGHT]) for _ in range(2))]

        def loop(rounds):
            drawer, reflector = RememberingDrawer(ScriptedDrawer(*qualities)), ScriptedReflector(*said)
            return reflect(Task("x"), drawer, reflector, QualityVerifier(), rounds=rounds, redraw=Redraw.EDIT), drawer

        def several(count):
            drawer = RememberingDrawer(ScriptedDrawer(*qualities))
            return best_of(Task("x"), drawer, QualityVerifier(), range(count)), drawer

        for run, sizes in ((loop, (0, 1, 2)), (several, (1, 2, 3, 4, 5))):
            told = rights(trials.progress(*run(sizes[-1]), quality_of))
            single = [quality_of(run(size)[0].best.picture) for size in sizes]
            assert told + told[-1:] * (len(sizes) - len(told)) == single


# Questions and decisions


def test_questions_are_evenly_of_all_kinds_about_one_to_four_things(monkeypatch):
    asked = Counter()
    ask = trials.ask

    def watched(rng, scene, kind):
        asked[kind, len(scene.things)] += 1
        return ask(rng, scene, kind)

    monkeypatch.setattr(trials, "ask", watched)
    drawn = [trials.draw_question(1, number) for number in range(64)]
    assert set(asked) == {(kind, count) for kind in KINDS for count in (1, 2, 3, 4)} and set(asked.values()) == {2}
    assert len({scene for _, _, scene in drawn}) == 64
    assert drawn[:8] == [trials.draw_question(1, number) for number in range(8)] != [trials.draw_question(2, n) for n in range(8)]


def test_an_answer_is_right_if_it_is_the_answer_apart_from_space(monkeypatch):
    questions = [trials.draw_question(1, number) for number in range(3)]
    said = [f" {questions[0][1]}\n", questions[1][1].upper(), questions[2][1] + "."]

    def answer(assistant, asked, images, *, batch):
        assert asked == [question for question, *_ in questions] and all(len(own) == 1 for own in images)
        assert [own[0].tobytes() for own in images] == [render(scene).tobytes() for *_, scene in questions]
        return [Answer(text, (), True) for text in said]

    monkeypatch.setattr(trials, "answer", answer)
    assert [answered.right for answered in trials.answer_questions(None, questions)] == [True, False, False]


def test_half_of_the_messages_ask_for_pictures():
    messages = [trials.draw_message(1, number) for number in range(80)]
    kinds = Counter((wanted, scene is not None) for _, scene, wanted in messages)
    assert kinds == {("draw", False): 20, ("draw", True): 20, ("answer", True): 20, ("answer", False): 20}


@pytest.mark.parametrize(("said", "decision"), [("<|img|>", "draw"), ("A<|img|>", "answer"), ("<|im_end|>", "answer")])
@pytest.mark.parametrize("number", [0, 2])
def test_a_decision_is_what_the_chat_does(monkeypatch, golden, said, decision, number):
    assistant = golden_assistant(golden)
    prompts = says(monkeypatch, assistant, said)
    message, scene, _ = trials.draw_message(1, number)
    decided = trials.decide(assistant, (message, scene, "draw"))
    assert (decided.asked, decided.said, decided.right) == (message, decision, decision == "draw")
    assert chat_prompt(message, 1 if scene else 0) in prompts


# The trained form


def test_a_trained_correction_is_an_edit_even_where_it_speaks_of_places():
    said = read(Written("Wrong at top left: nothing.\nput a small red circle at the top left, clear the bottom", True))
    assert said.verdict is Verdict.UNSATISFIED and ways(Task("four things"), said, Redraw.AUTO)[0] is Redraw.EDIT
    assert said.correction == "put a small red circle at the top left, clear the bottom"


def test_trained_weights_are_asked_the_whole_instruction_and_nothing_else():
    asked = []

    def yes_no(questions, images):
        asked.append((list(questions), [len(own) for own in images]))
        return [YesNo(-0.1, -3.0)]

    task = Task(" a red circle \n")
    examiner = trained_verifier(Looker(ask=None, yes_no=yes_no)).examiner(task)
    judged = examiner.score(picture(1))
    assert asked == [([f"{whole_question(task)} Answer yes or no."], [1])]
    assert judged.value > 0.9 and judged.note == "" and examiner.prefer(picture(1), picture(2)) is None
