"""The figures of `score --reflection`: what each counts, what is paired with what, and that they can be had again."""

import argparse
import json
import random
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from reflection_fakes import FAULT, RIGHT, QualityVerifier, ScriptedDrawer, ScriptedReflector, picture, quality_of
from talking import golden_assistant, says

from omnigen2_core.assistant import Answer
from omnigen2_core.nano import reflection_score, score, trials
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.questions import KINDS
from omnigen2_core.nano.reflection_score import BARS, equal_n, figures_of, measure_enough
from omnigen2_core.nano.score import paired
from omnigen2_core.nano.trials import Answered, RememberingDrawer, Share, Tools, Trial, Try, draw_hard
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
from omnigen2_core.reflection.requirements import whole_question
from omnigen2_core.reflection.redraw import ways
from omnigen2_core.reflection.trained import Written, read
from omnigen2_core.yes_no import YesNo

LAUNCHER = Path(__file__).resolve().parent.parent / ".ci" / "launcher.py"


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
        self.lucky, self.sees, self.spoils = lucky, sees, spoils
        self.drawn = []

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
        return Score((Check("?", float(not self.sees or self.hard.is_right(shown))),))

    def prefer(self, first, second):
        return None

    def trial(self, seeds=3):
        tools = Tools(self.draw, self.reflect, self, assistant=None)
        drawer = RememberingDrawer(tools.draw)
        return trials.make_trial(*trials.run_both(tools, drawer, self.hard, seeds), drawer, self.hard.is_right)


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


def test_the_first_picture_is_drawn_once_for_all_ways(monkeypatch):
    studio = Studio(monkeypatch)
    studio.trial(seeds=3)
    assert Counter(studio.drawn) == {0: 1, 1: 2, 2: 1}, "the edit has a seed that best of N has too"


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


# The figures


def make(first, loop, several=(False,) * 3, accepted=False, loop_seconds=1.0):
    """A trial with results 0 or 1; the n-th seed ends after n seconds."""
    tries = tuple(Try(bool(right), loop_seconds) for right in (first, loop, loop))
    best = tuple(Try(bool(right), float(n)) for n, right in enumerate(several, start=1))
    return Trial(Try(bool(first), 1.0), tries, best, accepted, Stop.SATISFIED)


def test_every_figure_counts_what_its_name_says():
    made = [
        *[make(1, 1, (1, 1, 1), accepted=True)] * 5,
        *[make(1, 0, (1, 1, 1))] * 1,
        *[make(0, 1, (0, 1, 0))] * 3,
        *[make(0, 0, (0, 0, 1), accepted=True)] * 1,
        *[make(0, 0)] * 2,
    ]
    yes, no = Answered("?", "", "red", "red"), Answered("?", "", "red", "Red")
    figures = figures_of(Share(tuple(made), (yes, yes, yes, no), (no, yes)))
    rates = {kind: (f["rate"] * f["n"], f["n"]) for kind, f in figures.items()}
    assert rates == {
        "qa": (3, 4),
        "decision": (1, 2),
        "judge_miss": (1, 6),
        "judge_false_alarm": (1, 6),
        "one_shot": (6, 12),
        "reflection_gain": (pytest.approx(8 - 6), 12),
        "reflection_over_best_of_3": (pytest.approx(8 - 7), 12),
        "reflection_harm": (1, 6),
    }
    assert figures.keys() == BARS.keys() | {"one_shot"}
    assert all(f.keys() == {"rate", "n", "low", "high"} and f["low"] <= f["rate"] <= f["high"] for f in figures.values())


def test_a_difference_is_known_the_better_the_more_alike_the_pairs_are():
    before = [True] * 50 + [False] * 50
    alike, unlike = [True] * 60 + [False] * 40, [False] * 40 + [True] * 60
    close, wide = paired(alike, before), paired(unlike, before)
    assert close["rate"] == wide["rate"] == pytest.approx(0.1)
    assert close["high"] - close["low"] < 0.15 < 0.3 < wide["high"] - wide["low"]


def test_the_interval_of_a_difference_is_bonetts_and_prices():
    figure = paired([True] * 30 + [False] * 70, [False] * 30 + [True] * 5 + [False] * 65)
    assert (figure["rate"], figure["n"]) == (pytest.approx(0.25), 100)
    assert (figure["low"], figure["high"]) == (pytest.approx(0.1383, abs=1e-4), pytest.approx(0.3519, abs=1e-4))
    assert paired([True] * 3, [False] * 3)["high"] == 1.0
    with pytest.raises(ValueError):
        paired([True], [True, False])


def test_the_interval_of_a_difference_holds_the_truth_about_95_times_of_100():
    rng = random.Random(3)
    held = 0
    for _ in range(600):
        rows = rng.choices([(1, 1), (1, 0), (0, 1), (0, 0)], [4, 2, 1, 3], k=120)
        figure = paired([bool(a) for a, _ in rows], [bool(b) for _, b in rows])
        held += figure["low"] <= 0.1 <= figure["high"]
    assert 0.93 <= held / 600 <= 0.98


def test_a_rate_of_nothing_reaches_no_bar():
    nothing = score.figure([])
    assert nothing == {"rate": 0.0, "n": 0, "low": 0.0, "high": 1.0}
    assert not BARS["judge_miss"].holds(nothing) and not BARS["qa"].holds(nothing)


def test_bars_are_floors_and_ceilings():
    at = {"rate": 0.05, "n": 1}
    assert BARS["judge_miss"].holds(at) and not BARS["judge_miss"].holds(at | {"rate": 0.051})
    assert BARS["reflection_over_best_of_3"].holds(at) and not BARS["reflection_over_best_of_3"].holds(at | {"rate": 0.049})
    told = score.table({"judge_miss": score.figure([True]), "qa": score.figure([False])}, BARS).splitlines()
    assert "<= 5%  above" in told[1] and "97%  below" in told[2]


# Best of N for the time that the loop takes


@pytest.mark.parametrize(("loop_seconds", "n"), [(0.5, 3), (3.0, 3), (3.01, 4), (4.5, 5), (5.01, None)])
def test_best_of_n_gets_at_least_the_time_of_the_loop_and_at_least_three(loop_seconds, n):
    made = [make(0, 1, (0,) * 5, loop_seconds=loop_seconds + error) for error in (-0.4, 0.4)]
    assert equal_n(made) == n


def test_reflection_is_compared_with_the_n_of_equal_time():
    made = tuple(make(0, 1, (0, 0, 0, 1, 1), loop_seconds=time) for time in (2.0, 2.0))
    assert figures_of(Share(made))["reflection_over_best_of_3"]["rate"] == 1
    made = tuple(make(0, 1, (0, 0, 0, 1, 1), loop_seconds=time) for time in (2.0, 5.0))
    assert figures_of(Share(made))["reflection_over_best_of_3"]["rate"] == 0


def test_a_few_prompts_tell_how_many_seeds_are_needed():
    ran = []

    def run(numbers, seeds):
        ran.append((len(numbers), seeds))
        return Share(tuple(make(0, 1, (0,) * seeds, loop_seconds=6.5) for _ in numbers))

    share = measure_enough(run, 40)
    assert ran == [(24, 5), (24, 8), (16, 8)]
    assert len(share.trials) == 40 and {len(trial.best_of) for trial in share.trials} == {8}


def test_prompts_that_belie_the_first_few_are_all_measured_anew():
    ran = []

    def run(numbers, seeds):
        ran.append((numbers[0], numbers[-1], seeds))
        return Share(tuple(make(0, 1, (0,) * seeds, loop_seconds=1.0 if n < 24 else 20.0) for n in numbers))

    share = measure_enough(run, 48)
    assert ran == [(0, 23, 5), (24, 47, 5), (0, 47, 11)]
    assert len(share.trials) == 48 and equal_n(share.trials) == 11


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


# The command


def test_the_figure_shows_every_way_with_its_points():
    made = [make(number % 2, number % 3 > 0, (number % 2, number % 5 > 1, 1)) for number in range(30)]
    root = ElementTree.fromstring(reflection_score.draw_figure(made))
    tag = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{tag}polyline")) == 3
    assert len(root.findall(f"{tag}circle")) == len(root.findall(f"{tag}line")) == 3 + 3 + 1
    told = [text.text for text in root.findall(f"{tag}text")]
    assert {"best of N", "reflection to round N", "one shot"} <= set(told) and any("30 prompts" in text for text in told if text)


def test_the_report_tells_rates_times_and_why_loops_ended():
    told = reflection_score.report([make(0, 1, (0, 0, 1), loop_seconds=2.5)] * 4)
    for line in ("reflection to round 2", "best of 3", "one shot", "4  the picture is right", "compared with best of 3, 3.00 s"):
        assert line in told


def run_command(monkeypatch, *arguments, rates=None):
    seen = []

    def measured(options):
        seen.append(options)
        good = {kind: {"rate": bar.rate, "n": 9, "low": 0.0, "high": 1.0} for kind, bar in BARS.items()}
        return {kind: figure | {"rate": (rates or {}).get(kind, figure["rate"])} for kind, figure in good.items()}

    monkeypatch.setattr(reflection_score, "measure_reflection", measured)
    return score.main(["--reflection", *map(str, arguments)]), seen[0]


def test_the_command_measures_a_thousand_and_ends_well_when_every_bar_holds(monkeypatch, tmp_path):
    status, options = run_command(monkeypatch, "--json", tmp_path / "new" / "figures.json")
    assert status == 0 and options.count == 1000 and options.steps == 3 and options.figure == Path("reflection.svg")
    assert json.loads((tmp_path / "new" / "figures.json").read_text()).keys() == BARS.keys()


@pytest.mark.parametrize("kind", BARS)
def test_a_figure_on_the_wrong_side_of_its_bar_is_a_failure(monkeypatch, kind):
    wrong = BARS[kind].rate + (0.001 if BARS[kind].at_most else -0.001)
    assert run_command(monkeypatch, "--count", 3, rates={kind: wrong})[0] == 1


@pytest.mark.parametrize("arguments", [["--reflection", "--controls"], ["--reflection", "--processes", "0"], ["--count", "0"]])
def test_options_that_make_no_sense_are_refused(arguments):
    with pytest.raises(SystemExit) as ended:
        score.main(arguments)
    assert ended.value.code == 2


def test_figures_of_the_built_in_model_do_not_depend_on_the_number_of_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(reflection_score, "SHARE", 1)
    monkeypatch.setattr(reflection_score, "SEEDS", 3)
    monkeypatch.setattr("omnigen2_core.nano.processes._launcher", lambda: str(LAUNCHER))
    # Time is not the matter here, and another N would ask for more pictures.
    monkeypatch.setattr(reflection_score, "equal_n", lambda made, reserve=1.0: 3)

    def rows(processes):
        folder = tmp_path / str(processes)
        folder.mkdir()
        options = argparse.Namespace(
            model=WEIGHTS, steps=3, seed=7, count=2, processes=processes, save=folder, figure=folder / "curves.svg"
        )
        figures = reflection_score.measure_reflection(options)
        told = [json.loads(line) for line in (folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
        for row in told:
            for run in ("loop", "best_of"):
                for entry in row.get(run, {"rounds": ()})["rounds"]:
                    assert set(entry.pop("seconds")) >= {"draw", "verify"}
        pictures = {file.name: Image.open(file).tobytes() for file in (folder / "hard").iterdir()}
        assert len(pictures) == sum(len(row[run]["rounds"]) for row in told if row["kind"] == "hard" for run in ("loop", "best_of"))
        return figures, told, pictures

    alone, shared = rows(1), rows(2)
    assert alone == shared
    figures, told, _ = alone
    assert Counter(row["kind"] for row in told) == {"hard": 2, "question": 2, "decision": 2}
    assert [row["number"] for row in told if row["kind"] == "hard"] == [0, 1]
    assert {kind: figures[kind]["n"] for kind in ("qa", "decision", "reflection_gain")} == dict.fromkeys(
        ("qa", "decision", "reflection_gain"), 2
    )
