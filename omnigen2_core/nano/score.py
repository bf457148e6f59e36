"""How often the nano model does what it is told: draws new tasks, lets the pack's own sampler solve them, judges pixels.

    python -m omnigen2_core.nano.score --seed 1 --count 240 --json figures.json --save pictures/
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
from PIL import Image

from . import wording as w
from .edits import draw_composition, draw_edit
from .folder import WEIGHTS
from .judge import look, matches, preserved
from .world import DEFAULT_SIZE, Scene, Thing, draw_scene, render

logger = logging.getLogger(__name__)

BARS = {"t2i_1": 0.98, "t2i_2": 0.95, "t2i_3": 0.88, "edit": 0.92, "edit_preserved": 0.92, "in_context": 0.85}
MEANINGS = {
    "t2i_1": "text to image, one thing: exact scene",
    "t2i_2": "text to image, two things: exact scene",
    "t2i_3": "text to image, three things: exact scene",
    "edit": "edit done and everything else left alone",
    "edit_preserved": "edit: everything else left alone",
    "in_context": "two references composed as told",
}
TASKS = ("t2i_1", "t2i_2", "t2i_3", "edit", "in_context")
BATCH = 24


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
    """A new task of a kind of `TASKS`."""
    if kind.startswith("t2i_"):
        scene = draw_scene(rng, int(kind[4:]))
        return Task(w.describe(rng, scene), scene)
    if kind == "edit":
        edit = draw_edit(rng)
        return Task(edit.prompt, edit.target, (edit.source,))
    made = draw_composition(rng, 2)
    return Task(made.prompt, made.target, made.references)


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
    return {"rate": sum(results) / len(results), "n": len(results), "low": low, "high": high}


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


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures beside their bars, as text."""
    lines = [f"{'':<46}{'rate':>8}{'95 % interval':>18}{'bar':>8}"]
    for kind, f in figures.items():
        mark = "" if f["rate"] >= BARS[kind] else "  below"
        interval = f"{100 * f['low']:.1f} - {100 * f['high']:.1f}"
        lines.append(f"{MEANINGS[kind]:<46}{100 * f['rate']:>7.1f}%{interval:>18}{100 * BARS[kind]:>7.0f}%{mark}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(prog="score", description="Judge the built-in model on new tasks.")
    parser.add_argument("--seed", type=int, default=1, help="which tasks are drawn")
    parser.add_argument("--count", type=int, default=240, help="tasks of each kind")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--save", type=Path, help="keep every picture with its prompt in this folder")
    parser.add_argument("--controls", action="store_true", help="also measure what the sampler's controls do")
    parser.add_argument("--figure", type=Path, default=Path("controls.svg"), help="where --controls draws its curves")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="another model folder")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.count < 1:
        parser.error(f"--count is {options.count}; give at least 1.")
    for file in filter(None, (options.json, options.figure if options.controls else None)):
        file.parent.mkdir(parents=True, exist_ok=True)

    from ..pipeline import OmniGen2Pipeline

    pipeline = OmniGen2Pipeline.from_folder(options.model)
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        (options.save / "tasks.jsonl").unlink(missing_ok=True)
    keep = (lambda kind, outcomes: save_outcomes(options.save, kind, outcomes)) if options.save else None
    figures = score(pipeline, options.seed, options.count, keep=keep)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.controls:
        from .controls import draw_curves, measure_controls, report

        curves = measure_controls(pipeline, options.seed, min(options.count, 96))
        print(report(curves))
        options.figure.write_text(draw_curves(curves), encoding="utf-8")
    return 0 if all(f["rate"] >= BARS[kind] for kind, f in figures.items()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
