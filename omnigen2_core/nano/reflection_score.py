"""How well the nano model answers, judges its own pictures, and draws better by looking at them.

    python -m omnigen2_core.nano.score --reflection --seed 5 --figure omnigen2_core/nano/reflection.svg

Hard prompts, of four things and at few sampling steps, are drawn once, corrected in up to two rounds, and drawn from
several seeds of which the same verifier chooses the best, or takes the first that it holds right: by the pack's own loop and
best of N, judged by pixels.
All of them share the first picture, so every comparison is between pairs. Time is what drawing and looking take on one
core, one picture after the other. Rates follow from the seed alone; which N takes as long as the loop does not.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Callable, Mapping, Sequence

from .curves import COLOURS, Panel, floor_of, picture
from .processes import start_processes
from .score import Bar, figure, paired
from .trials import HARD_STEPS, Answered, Share, Trial, Try, measure_share

logger = logging.getLogger(__name__)

BARS = {
    "qa": Bar("questions about pictures answered exactly", 0.97),
    "decision": Bar("draws when asked to draw, else answers", 0.99),
    "judge_miss": Bar("wrong pictures that the loop lets pass", 0.05, at_most=True),
    "judge_false_alarm": Bar("right pictures in which it finds a fault", 0.02, at_most=True),
    "reflection_gain": Bar("exact scenes, reflection less one shot", 0.12),
    "reflection_over_best_of_3": Bar("exact scenes, reflection less best of N", 0.05),
    "reflection_harm": Bar("right pictures that reflection made wrong", 0.01, at_most=True),
}
LEAST_N = 3
"""Reflection is compared with the best of so many, or of more where so many take less time than reflection."""
SEEDS = 5
"""Pictures of best of N, as long as N need not be larger."""
LEEWAYS = (0.0, 0.05, 0.1, 0.2, 0.5)
"""Judging is also told for pictures that keep or miss the limits of the judge of pixels by at least so much."""
SHARE = 8
"""Numbers that a process gets at a time. Its questions are one batch, so the size is the same for all processes."""
PILOT, RESERVE = 3 * SHARE, 1.15
"""So many prompts tell how many seeds are needed, with something to spare."""

ONE_SHOT = Bar("exact scenes, one shot", 0.0)
"""Not a bar but what the others are measured against: how hard the prompts are at so many steps."""

Figure = Mapping[str, float]


def mean_seconds(tries: Sequence[Try]) -> float:
    """The mean time to a result."""
    return sum(one.seconds for one in tries) / len(tries)


def equal_n(trials: Sequence[Trial], reserve: float = 1.0) -> int | None:
    """The least N from LEAST_N on with which best of N takes at least as long as the loop, `reserve` times.

    None where more seeds would be needed than were drawn.
    """
    loop = reserve * mean_seconds([trial.loop[-1] for trial in trials])
    drawn = len(trials[0].best_of)
    enough = (n for n in range(LEAST_N, drawn + 1) if mean_seconds([trial.best_of[n - 1] for trial in trials]) >= loop)
    return next(enough, None)


def measure_enough(run: Callable[[range, int], Share], count: int) -> Share:
    """The shares of `count` numbers, all with as many seeds as it takes for an equal time.

    `run` measures some numbers with so many seeds. A few go first, to find out how many seeds that is.
    """
    share, seeds = Share(), SEEDS
    for stop, reserve in ((min(PILOT, count), RESERVE), (count, 1.0)):
        share += run(range(len(share.trials), stop), seeds)
        while equal_n(share.trials, reserve) is None:
            one = mean_seconds([trial.best_of[-1] for trial in share.trials]) / seeds
            loop = mean_seconds([trial.loop[-1] for trial in share.trials])
            seeds = max(seeds + 1, math.ceil(reserve * loop / one))
            share = run(range(stop), seeds)
    return share


def figures_of(share: Share) -> dict[str, dict[str, float]]:
    """All figures, by the names of BARS, and `one_shot`. `best_of` is the N that reflection was compared with."""
    trials, n = share.trials, equal_n(share.trials)
    first, last = [trial.one_shot.right for trial in trials], [trial.loop[-1].right for trial in trials]
    several = [trial.best_of[n - 1].right for trial in trials]
    return {
        "qa": figure([said.right for said in share.questions]),
        "decision": figure([said.right for said in share.decisions]),
        "judge_miss": figure([trial.accepted for trial in trials if not trial.one_shot.right]),
        "judge_false_alarm": figure([not trial.accepted for trial in trials if trial.one_shot.right]),
        "one_shot": figure(first),
        "reflection_gain": paired(last, first),
        "reflection_over_best_of_3": {**paired(last, several), "best_of": n},
        "reflection_harm": figure([not trial.loop[-1].right for trial in trials if trial.one_shot.right]),
    }


# What is shown beside the figures


@dataclass(frozen=True)
class Point:
    """One way to spend time on a prompt: its mean seconds and the rate of exact scenes."""

    label: str
    seconds: float
    exact: Figure


def curves_of(trials: Sequence[Trial]) -> dict[str, list[Point]]:
    """Exact scenes over time, of each way."""

    def point(label: str, tries: Sequence[Try]) -> Point:
        return Point(label, mean_seconds(tries), figure([one.right for one in tries]))

    loops, several, until = (zip(*tries) for tries in zip(*((t.loop, t.best_of, t.until) for t in trials)))
    return {
        "best of N": [point(str(n), tries) for n, tries in enumerate(several, start=1)],
        "reflection to round N": [point(str(n), tries) for n, tries in enumerate(loops)],
        "drawn until held right, N at most": [point(str(n), tries) for n, tries in enumerate(until, start=1)],
        "one shot": [point("", [trial.one_shot for trial in trials])],
    }


def report(trials: Sequence[Trial], steps: int = HARD_STEPS) -> str:
    """The curves, why loops ended, and the N of the comparison, as text."""
    lines = [f"{len(trials)} prompts of four things at {steps} steps"]
    for name, points in curves_of(trials).items():
        for point in points:
            f, label = point.exact, name.replace("N", point.label)
            interval = f"{100 * f['low']:.1f} - {100 * f['high']:.1f}"
            lines.append(f"{label:<46}{100 * f['rate']:>7.1f}%{interval:>18}{point.seconds:>8.2f} s")
    lines += [judging(trials, share) for share in LEEWAYS]
    stops = Counter(trial.stop.value for trial in trials)
    lines += [f"{count:>5}  {reason}" for reason, count in stops.most_common()]
    n = equal_n(trials)
    loop, several = (mean_seconds(tries) for tries in zip(*((t.loop[-1], t.best_of[n - 1]) for t in trials)))
    return "\n".join([*lines, f"reflection takes {loop:.2f} s; compared with best of {n}, {several:.2f} s"])


def judging(trials: Sequence[Trial], share: float) -> str:
    """Misses and false alarms where the judge of pixels is at least such a `share` from its limits, as text."""
    clear = [trial for trial in trials if trial.leeway >= math.log(1 + share)]
    miss = figure([trial.accepted for trial in clear if not trial.one_shot.right])
    alarm = figure([not trial.accepted for trial in clear if trial.one_shot.right])
    which = f"judged {100 * share:.0f} % from the limits or more" if share else "judged"
    told = (f"{kind} {100 * f['rate']:.1f}% of {f['n']}" for kind, f in (("missed", miss), ("false alarms", alarm)))
    return f"{which:<46}{', '.join(told)}"


def answering(questions: Sequence[Answered]) -> str:
    """Questions about two things or more, as text. There are 6,048 scenes of one thing, and training has seen most of them."""
    f = figure([said.right for said in questions if ", " in said.about])
    return f"{'questions about two things or more':<46}{100 * f['rate']:>7.1f}% of {f['n']}"


def draw_figure(trials: Sequence[Trial], steps: int = HARD_STEPS) -> str:
    """The curves as an SVG picture."""
    curves = curves_of(trials)
    points = [point for points in curves.values() for point in points]
    longest = max(point.seconds for point in points)
    lowest = floor_of(point.exact["low"] for point in points)
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 60, math.inf) if longest / step <= 10)
    panel = Panel(60, 40, 600, 280, (0.0, 1.05 * longest), lowest)
    title = f"Exact scenes of four things at {steps} steps, {len(trials)} prompts"
    ticks = [round(i * step, 1) for i in range(11) if i * step <= 1.05 * longest]
    parts = panel.frame(title, "seconds a prompt on one core", ticks)
    for points, colour in zip(curves.values(), COLOURS):
        parts += panel.line([p.seconds for p in points], [p.exact["rate"] for p in points], colour)
        for p in points:
            parts.append(panel.interval(p.seconds, p.exact["low"], p.exact["high"], colour))
            parts.append(panel.note(p.seconds, p.exact["rate"], p.label, colour))
    return picture(690, 370, [*parts, *panel.legend(curves)])


# The command


def measure_reflection(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures, for options of `score`; prints and draws what belongs to them, and keeps what `--save` asks for."""
    with start_processes(options.processes) as pool:

        def run(numbers: range, seeds: int) -> Share:
            work = partial(measure_share, options.model, options.steps, options.guided, options.lora, options.seed, seeds, options.save)
            start, done = time.monotonic(), Share()
            for share in pool.map(work, [numbers[i : i + SHARE] for i in range(0, len(numbers), SHARE)]):
                done += share
                took = time.monotonic() - start
                logger.info("%d of %d prompts, best of %d: %.0f s", len(done.trials), len(numbers), seeds, took)
            return done

        share = measure_enough(run, options.count)
    print(report(share.trials, options.steps))
    print(answering(share.questions))
    options.figure.write_text(draw_figure(share.trials, options.steps), encoding="utf-8")
    if options.save:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in share.rows]
        (options.save / "tasks.jsonl").write_text("".join(lines), encoding="utf-8")
    return figures_of(share)
