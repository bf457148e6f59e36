"""How often the nano model does what it is told: draws new tasks, lets the pack's own sampler solve them, judges pixels.

    python -m omnigen2_core.nano.score --seed 1 --count 240 --json figures.json --save pictures/

With `--reflection`: how well it answers, judges its own pictures, and mends them; see `reflection_score`.
With `--formats`: what smaller weight formats cost; see `formats`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from . import wording as w
from .edits import EDIT_KINDS, Edit, draw_composition, draw_edit
from .folder import WEIGHTS
from .judge import look, matches, preserved
from .world import DEFAULT_SIZE, Scene, Thing, draw_scene, render

logger = logging.getLogger(__name__)

TASKS = ("t2i_1", "t2i_2", "t2i_3", "edit", "in_context")
BATCH = 24


@dataclass(frozen=True)
class Bar:
    """What a figure means, and the rate that it has to reach or, `at_most`, must not pass."""

    meaning: str
    rate: float
    at_most: bool = False

    def holds(self, figure: Mapping[str, float]) -> bool:
        """Whether a figure is on the right side. One of nothing is not."""
        return figure["n"] > 0 and (figure["rate"] <= self.rate if self.at_most else figure["rate"] >= self.rate)


BARS = {
    "t2i_1": Bar("text to image, one thing: exact scene", 0.98),
    "t2i_2": Bar("text to image, two things: exact scene", 0.95),
    "t2i_3": Bar("text to image, three things: exact scene", 0.88),
    "edit": Bar("edit done and everything else left alone", 0.92),
    "edit_preserved": Bar("edit: everything else left alone", 0.92),
    "in_context": Bar("two references composed as told", 0.85),
}


@dataclass(frozen=True)
class Task:
    """A prompt with references, and what the picture must show."""

    prompt: str
    wanted: Scene
    references: tuple[Scene, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A task's picture, what was seen in it, and whether it is right; `kept`, for edits, whether the rest stayed."""

    task: Task
    seed: int
    picture: Image.Image
    seen: Scene | None
    doubt: str
    right: bool
    kept: bool


def draw_task(kind: str, rng: random.Random) -> Task:
    """A new task of a kind of `TASKS`; also "edit_N", of a scene of N things, and "in_context_N", of N references."""
    if kind.startswith("t2i_"):
        scene = draw_scene(rng, int(kind[4:]))
        return Task(w.describe(rng, scene), scene)
    if kind.startswith("edit"):
        edit = draw_edit(rng) if kind == "edit" else draw_edit_of(rng, int(kind[5:]))
        return Task(edit.prompt, edit.target, (edit.source,))
    made = draw_composition(rng, int(kind.removeprefix("in_context").lstrip("_") or 2))
    return Task(made.prompt, made.target, made.references)


def draw_edit_of(rng: random.Random, things: int) -> Edit:
    """An edit of a scene of so many things that leaves no more of them."""
    return draw_edit(rng, rng.choice([kind for kind in EDIT_KINDS if kind != "add"]), draw_scene(rng, things))


def draw_tasks(kind: str, seed: int, count: int) -> list[Task]:
    """`count` tasks that follow from the seed."""
    rng = random.Random(f"score {kind} {seed}")
    return [draw_task(kind, rng) for _ in range(count)]


def changed_places(source: Scene, target: Scene) -> set[int]:
    """Cells in which two scenes differ."""
    different: set[Thing] = set(source.things) ^ set(target.things)
    return {thing.place for thing in different}


def judge_task(task: Task, seed: int, picture: Image.Image) -> Outcome:
    """Judges one picture by its pixels."""
    pixels = np.asarray(picture.convert("RGB"))
    sight = look(pixels)
    right = matches(sight.scene, task.wanted)
    kept = right
    if len(task.references) == 1:
        (source,) = task.references
        before = render(source, *picture.size)
        kept = preserved(pixels, before, changed_places(source, task.wanted), source.ground != task.wanted.ground)
        right = right and kept
    return Outcome(task, seed, picture, sight.scene, sight.doubt, right, kept)


def solve(pipeline, tasks: Sequence[Task], seed: int, *, batch: int = BATCH, **settings) -> list[Outcome]:
    """Draws and judges every task. `settings` go to the pipeline's `generate`."""
    outcomes = []
    for start in range(0, len(tasks), batch):
        some = tasks[start : start + batch]
        references = [[Image.fromarray(render(scene, *DEFAULT_SIZE)) for scene in task.references] for task in some]
        seeds = [seed * 100_003 + start + i for i in range(len(some))]
        pictures = pipeline.generate(
            [task.prompt for task in some],
            references=references if any(references) else None,
            seeds=seeds,
            size=DEFAULT_SIZE,
            **settings,
        )
        outcomes += [judge_task(*parts) for parts in zip(some, seeds, pictures)]
    return outcomes


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a rate (E. B. Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    p, zz = successes / count, z * z
    centre = (p + zz / (2 * count)) / (1 + zz / count)
    half = z / (1 + zz / count) * math.sqrt(p * (1 - p) / count + zz / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def figure(results: Sequence[bool]) -> dict[str, float]:
    """Rate, number and interval of results."""
    low, high = wilson(sum(results), len(results))
    return {"rate": sum(results) / max(1, len(results)), "n": len(results), "low": low, "high": high}


def paired(after: Sequence[bool], before: Sequence[bool], z: float = 1.96) -> dict[str, float]:
    """By how much the rate over the same tasks rose, and the 95 % interval (D. G. Bonett and R. M. Price, 2012)."""
    pairs = list(zip(after, before, strict=True))
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    up, down = ((count + 1) / (len(pairs) + 2) for count in (gained, lost))
    half = z * math.sqrt((up + down - (up - down) ** 2) / (len(pairs) + 2))
    rate = (gained - lost) / max(1, len(pairs))
    return {"rate": rate, "n": len(pairs), "low": max(-1.0, up - down - half), "high": min(1.0, up - down + half)}


def score(
    pipeline, seed: int, count: int, *, kinds: Sequence[str] = TASKS, keep: Callable[[str, list[Outcome]], None] | None = None, **settings
) -> dict[str, dict[str, float]]:
    """The figures of `count` tasks of each kind. `keep` gets the outcomes of each kind as they come."""
    figures = {}
    for kind in kinds:
        started = time.monotonic()
        outcomes = solve(pipeline, draw_tasks(kind, seed, count), seed, **settings)
        figures[kind] = figure([o.right for o in outcomes])
        if kind == "edit":
            figures["edit_preserved"] = figure([o.kept for o in outcomes])
        logger.info("%s: %.1f %% in %.0f s", kind, 100 * figures[kind]["rate"], time.monotonic() - started)
        if keep:
            keep(kind, outcomes)
    return figures


def save_outcomes(folder: Path, kind: str, outcomes: Sequence[Outcome]) -> None:
    """Writes each picture, its references, and one line with prompt, wish and verdict in `tasks.jsonl`."""
    place = folder / kind
    place.mkdir(parents=True, exist_ok=True)
    with (folder / "tasks.jsonl").open("a", encoding="utf-8") as file:
        for i, outcome in enumerate(outcomes):
            name = f"{kind}/{i:04}.png"
            outcome.picture.save(folder / name)
            references = []
            for j, scene in enumerate(outcome.task.references):
                references.append(f"{kind}/{i:04}_reference{j + 1}.png")
                Image.fromarray(render(scene, *outcome.picture.size)).save(folder / references[-1])
            row = {
                "kind": kind,
                "picture": name,
                "references": references,
                "prompt": outcome.task.prompt,
                "seed": outcome.seed,
                "wanted": w.canonical(outcome.task.wanted),
                "seen": w.canonical(outcome.seen) if outcome.seen else outcome.doubt,
                "right": outcome.right,
                "rest_kept": outcome.kept,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def table(figures: Mapping[str, Mapping[str, float]], bars: Mapping[str, Bar] = BARS) -> str:
    """The figures beside their bars, as text."""
    lines = [f"{'':<46}{'rate':>8}{'95 % interval':>18}{'bar':>8}"]
    for kind, f in figures.items():
        bar = bars[kind]
        mark = "" if bar.holds(f) else "  above" if bar.at_most and f["n"] else "  below"
        interval, limit = f"{100 * f['low']:.1f} - {100 * f['high']:.1f}", f"{'<= ' if bar.at_most else ''}{100 * bar.rate:.0f}%"
        lines.append(f"{bar.meaning:<46}{100 * f['rate']:>7.1f}%{interval:>18}{limit:>8}{mark}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 when every bar is reached, else 1."""
    from ..convert.mix import FORMATS

    parser = argparse.ArgumentParser(prog="dev.py score", description="Judge the built-in model on new tasks.")
    parser.add_argument("--seed", type=int, default=1, help="which tasks are drawn")
    parser.add_argument("--count", type=int, help="tasks of each kind (default 240; with --reflection 1000, with --formats 96)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--save", type=Path, help="keep every picture with its prompt in this folder")
    also = parser.add_mutually_exclusive_group()
    also.add_argument("--controls", action="store_true", help="also measure what the sampler's controls do")
    also.add_argument("--reflection", action="store_true", help="measure answers, judging and the reflection loop instead")
    also.add_argument("--formats", nargs="*", choices=FORMATS, help="score the model in these weight formats instead, or in all of them")
    parser.add_argument("--figure", type=Path, help="where curves are drawn (default controls.svg or reflection.svg)")
    parser.add_argument("--steps", type=int, help="sampling steps of --reflection's hard prompts (default 3)")
    parser.add_argument("--unguided", dest="guided", action="store_false", help="draw them without guidance (default with the model's own)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="for --reflection and --formats (default one a core)")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="another model folder")
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument("--lora", type=Path, help="a LoRA to draw with (default with --reflection the one that mends, else none)")
    drawn.add_argument("--no-lora", action="store_true", help="for --reflection: draw without the LoRA that mends")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.count is None:
        options.count = 1000 if options.reflection else 240 if options.formats is None else 96
    options.figure = options.figure or Path("reflection.svg" if options.reflection else "controls.svg")
    for name in ("count", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; give at least 1.")
    if options.formats is not None and options.lora:
        parser.error("--lora is given, but --formats compares files of the model alone; leave one of them away.")
    if options.formats is not None and options.save:
        parser.error("--save is given, but --formats keeps no pictures; leave it away.")
    if options.reflection and not (options.lora or options.no_lora):
        from . import mending

        mends = options.model.parent / "loras" / mending.FILE.name
        options.lora = mends if mends.is_file() else None
    draws_curves = options.controls or options.reflection
    for file in filter(None, (options.json, options.figure if draws_curves else None)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        (options.save / "tasks.jsonl").unlink(missing_ok=True)

    if options.formats is not None:
        from . import formats

        verdicts = formats.measure_formats(
            options.model, options.formats or FORMATS, options.seed, options.count, options.processes, options.json
        )
        print(formats.table(verdicts))
        return 0 if formats.holds(verdicts) else 1
    if options.reflection:
        from . import reflection_score

        options.steps = options.steps or reflection_score.HARD_STEPS
        figures = reflection_score.measure_reflection(options)
        bars = reflection_score.BARS | {"one_shot": reflection_score.ONE_SHOT}
    else:
        from ..pipeline import OmniGen2Pipeline

        pipeline = OmniGen2Pipeline.from_folder(options.model)
        if options.lora:
            pipeline.load_lora(options.lora)
        keep = (lambda kind, outcomes: save_outcomes(options.save, kind, outcomes)) if options.save else None
        figures, bars = score(pipeline, options.seed, options.count, keep=keep), BARS
    print(table(figures, bars))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.controls:
        from .controls import draw_curves, measure_controls, report

        curves = measure_controls(pipeline, options.seed, min(options.count, 96))
        print(report(curves))
        options.figure.write_text(draw_curves(curves), encoding="utf-8")
    return 0 if all(bars[kind].holds(f) for kind, f in figures.items()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
