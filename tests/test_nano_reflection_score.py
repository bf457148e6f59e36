"""The figures of `score --reflection`: what each counts, what is paired with what, and that they can be had again."""

import argparse
import json
import math
import random
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from omnigen2_core.nano import mending, reflection_score, score
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.reflection_score import BARS, equal_n, figures_of, measure_enough
from omnigen2_core.nano.score import paired
from omnigen2_core.nano.trials import Answered, Share, Trial, Try
from omnigen2_core.reflection import Stop

LAUNCHER = Path(__file__).resolve().parent.parent / ".ci" / "launcher.py"


# The figures


def make(first, loop, several=(False,) * 3, accepted=False, loop_seconds=1.0, leeway=0.0):
    """A trial with results 0 or 1; the n-th seed ends after n seconds."""
    tries = tuple(Try(bool(right), loop_seconds) for right in (first, loop, loop))
    best = tuple(Try(bool(right), float(n)) for n, right in enumerate(several, start=1))
    return Trial(Try(bool(first), 1.0), tries, best, best, accepted, Stop.SATISFIED, leeway)


def test_questions_about_scenes_that_training_may_have_seen_are_told_apart():
    one, two = "large red ring at top; blue background", "large red ring at top, small green cross at left; blue background"
    said = [Answered("?", about, "yes", answer) for about, answer in ((one, "no"), (two, "yes"), (two, "no"), (two, "yes"), (two, "yes"))]
    assert reflection_score.answering(said).endswith(" 75.0% of 4")


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
    assert figures["reflection_over_best_of_3"].pop("best_of") == 3
    assert all(f.keys() == {"rate", "n", "low", "high"} and f["low"] <= f["rate"] <= f["high"] for f in figures.values())


def test_judging_is_told_for_pictures_that_are_clear_of_the_limits():
    made = [
        make(0, 1, accepted=True, leeway=0.01),
        make(0, 1, accepted=False, leeway=math.inf),
        make(1, 1, accepted=False, leeway=math.log(1.2)),
        make(1, 1, accepted=True, leeway=math.log(1.2)),
        make(1, 1, accepted=True, leeway=0.1),
    ]
    lines = [line for line in reflection_score.report(made).splitlines() if line.startswith("judged")]
    assert lines[0].endswith("missed 50.0% of 2, false alarms 33.3% of 3")
    assert "20 % from the limits" in lines[3] and lines[3].endswith("missed 0.0% of 1, false alarms 50.0% of 2")


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
    over = figures_of(Share(made))["reflection_over_best_of_3"]
    assert over["rate"] == 1 and over["best_of"] == 3
    made = tuple(make(0, 1, (0, 0, 0, 1, 1), loop_seconds=time) for time in (2.0, 5.0))
    over = figures_of(Share(made))["reflection_over_best_of_3"]
    assert over["rate"] == 0 and over["best_of"] == 4


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


# The command


def test_the_figure_shows_every_way_with_its_points():
    made = [make(number % 2, number % 3 > 0, (number % 2, number % 5 > 1, 1)) for number in range(30)]
    root = ElementTree.fromstring(reflection_score.draw_figure(made))
    tag = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{tag}polyline")) == 4
    assert len(root.findall(f"{tag}circle")) == len(root.findall(f"{tag}line")) == 3 + 3 + 3 + 1
    told = [text.text for text in root.findall(f"{tag}text")]
    ways = {"best of N", "reflection to round N", "drawn until held right, N at most", "one shot"}
    assert ways <= set(told) and any("30 prompts" in text for text in told if text)


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


def test_it_draws_with_the_lora_that_mends_unless_told_otherwise(monkeypatch, tmp_path):
    assert run_command(monkeypatch)[1].lora == mending.FILE
    assert run_command(monkeypatch, "--no-lora")[1].lora is None
    assert run_command(monkeypatch, "--lora", "other.safetensors")[1].lora == Path("other.safetensors")
    assert run_command(monkeypatch, "--model", tmp_path / "other")[1].lora is None, "another model has no such LoRA"


@pytest.mark.parametrize("kind", BARS)
def test_a_figure_on_the_wrong_side_of_its_bar_is_a_failure(monkeypatch, kind):
    wrong = BARS[kind].rate + (0.001 if BARS[kind].at_most else -0.001)
    assert run_command(monkeypatch, "--count", 3, rates={kind: wrong})[0] == 1


@pytest.mark.parametrize("arguments", [["--reflection", "--controls"], ["--reflection", "--processes", "0"], ["--count", "0"], ["--formats", "--lora", "x"]])
def test_options_that_make_no_sense_are_refused(arguments):
    with pytest.raises(SystemExit) as ended:
        score.main(arguments)
    assert ended.value.code == 2


def test_pictures_that_are_not_kept_leave_those_of_another_run_alone(tmp_path):
    kept = tmp_path / "tasks.jsonl"
    kept.write_text("{}\n")
    with pytest.raises(SystemExit):
        score.main(["--formats", "--save", str(tmp_path)])
    assert kept.read_text() == "{}\n"


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
            model=WEIGHTS, steps=3, guided=False, lora=None, seed=7, count=2, processes=processes, save=folder, figure=folder / "curves.svg"
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
