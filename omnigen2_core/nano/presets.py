"""What each way of saving work costs in right pictures: speed against score, each method alone and the presets.

    python dev.py presets --figure trade-off.svg
    python dev.py presets steps=16,solver=dpmpp_2m,context_refresh=4 balanced
    python dev.py presets --model OmniGen2 --tasks tasks.json

Speed is arithmetic, not time: what the pattern of a run, computed and skipped, would cost the published model at
1024x1024, against its 50 plain Euler steps. The patterns are kept with the results, so that they can be timed.

The built-in model draws scenes of its world, judged by pixels, in batches of 24; what values decide is decided for a
batch. The plain path and the presets get 480 problems of each of three kinds, 1,440 of text to image, and 48 of each
kind in a second world of more things and other references, as do methods together; in the first world all other settings
get 48, or 24 where they have 50 steps: about an hour on two cores. Any other model draws the tasks of --tasks, one after
the other, and its own encoder says whether a picture shows what was asked for. Results are kept from batch to batch, and a
search goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..acceleration.presets import PRESETS
from ..checkpoints import ModelFolder
from ..errors import OmniGen2Error
from .candidates import ALONE, PLAIN, TOGETHER, Candidate, of_preset, parse
from .folder import PROFILE, WEIGHTS
from .own_tasks import OwnTasks
from .problems import FIRST, SECOND, World
from .results import Header, Results
from .score import BATCH
from .search import Stage, search
from .trade_off import markdown, overall, table
from .trade_off_figure import draw_figure

CHOSEN = (PLAIN, *(of_preset(preset) for preset in PRESETS.values() if of_preset(preset) != PLAIN))
"""The plain path, which the preset exact is, and the other presets."""
TEXT_ALONE = replace(FIRST, kinds={"t2i_2": FIRST.kinds["t2i_2"]})
"""Text to image loses so little that only three times as many problems as of the others tell it from a point."""


def stages(count: int) -> list[Stage]:
    """The whole search on the built-in model, in the order in which its parts are worth having.

    count: problems of each kind for the presets. What only shows the way gets fewer: half as many where runs are short,
    a quarter where they have 50 steps.
    """
    alone = [parse(text) for settings in ALONE.values() for text in settings]
    short = {candidate for candidate in alone if candidate.steps < PLAIN.steps}
    long = [candidate for candidate in alone if candidate.steps == PLAIN.steps]
    short |= {candidate.without_methods() for candidate in CHOSEN if candidate != PLAIN}
    together = tuple(map(parse, TOGETHER))
    return [
        Stage(FIRST, CHOSEN, count),
        Stage(FIRST, together, count // 2),
        Stage(SECOND, (*CHOSEN, *together), count // 2),
        Stage(FIRST, tuple(long), count // 4),
        Stage(FIRST, tuple(sorted(short, key=str)), count // 2),
        Stage(FIRST, CHOSEN, 5 * count),
        Stage(TEXT_ALONE, CHOSEN, 15 * count),
    ]


def own_stages(tasks: World, count: int) -> list[Stage]:
    """The same for another model's tasks: first the presets, with and without their methods, then each method alone."""
    fewer = tuple(candidate.without_methods() for candidate in CHOSEN if candidate != PLAIN)
    alone = tuple(parse(text) for settings in ALONE.values() for text in settings)
    return [Stage(tasks, CHOSEN, count), Stage(tasks, (*fewer, *(one for one in alone if one not in fewer)), count)]


def chosen_stages(options: argparse.Namespace) -> list[Stage]:
    """What the command is asked to search. Raises OmniGen2Error for settings and tasks that cannot be."""
    named: tuple[Candidate, ...] = tuple(map(parse, options.settings))
    tasks = OwnTasks(options.tasks) if options.tasks else None
    if tasks is not None:
        tasks.kinds  # What is wrong with the file is said before a model is loaded.
    if options.report:
        return []
    if named:
        return [Stage(tasks or FIRST, (PLAIN, *named), options.count)]
    return own_stages(tasks, options.count) if tasks else stages(options.count)


def show(results: Results) -> None:
    """Prints what is known of every world."""
    for world in results.worlds():
        print(f"\n{world}\n{table(results, world)}")
        for name, candidate in zip(PRESETS, map(of_preset, PRESETS.values())):
            right, change = overall(results, str(candidate), world)
            if right["n"]:
                print(f"{name}: {100 * right['rate']:.1f} % of {right['n']} right{_points(change)}")


def _points(change: Mapping[str, float] | None) -> str:
    """A change with its interval; nothing where there is none."""
    if change is None:
        return ""
    return f", {100 * change['rate']:+.1f} points ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 when everything that was asked for is known, 1 for what cannot be, 2 when time ran out."""
    parser = argparse.ArgumentParser(
        prog="dev.py presets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help="presets or settings; without any, each method alone, several together, and the presets")
    parser.add_argument("--results", type=Path, default=Path("runs/presets.jsonl"), help="where results are kept and looked for (default %(default)s)")
    parser.add_argument("--seed", type=int, default=3, help="which problems are drawn (default %(default)s)")
    parser.add_argument("--count", type=int, default=4 * BATCH, help="problems of each kind for a setting (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no batch after so many")
    parser.add_argument("--processes", type=int, help="default one a core; one with --tasks or a graphics card")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="a model folder; the default is the built-in model")
    parser.add_argument("--tasks", type=Path, help='tasks for another model: [{"prompt": "...", "references": ["cat.png"]}, ...]')
    parser.add_argument("--report", action="store_true", help="draw nothing, only show what is known")
    parser.add_argument("--figure", type=Path, help="draw speed against score into this SVG file")
    parser.add_argument("--table", type=Path, help="write everything as Markdown into this file")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count is {options.count}; give at least 1.")
    try:
        wanted = chosen_stages(options)
        header = Header.of(ModelFolder(options.model), options.seed)
        if header.model != PROFILE.name and not options.tasks:
            raise OmniGen2Error(f"{options.model} knows nothing of the built-in model's world; give --tasks a file of your own.")
        results = Results(options.results, header)
        complete = _search(results, wanted, options)
    except OmniGen2Error as error:
        print(error, file=sys.stderr)
        return 1
    show(results)
    if options.figure and results.worlds():
        world = OwnTasks(options.tasks).name if options.tasks else ""
        options.figure.write_text(draw_figure(results, world), encoding="utf-8")
    if options.table:
        parts = [f"### {world}\n\n{markdown(results, world)}" for world in results.worlds()]
        options.table.write_text("\n".join(parts), encoding="utf-8")
    return 0 if complete else 2


def _search(results: Results, wanted: Sequence[Stage], options: argparse.Namespace) -> bool:
    import torch

    started = time.monotonic()
    # Each process holds a model of its own, which is more than one only of the built-in one.
    one = options.tasks or torch.cuda.is_available()
    processes = options.processes or (1 if one else os.cpu_count() or 1)

    def tell(done: int, total: int) -> None:
        print(f"{done} of {total} batches of this part, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    return search(results, wanted, options.model, processes=processes, until=started + 60 * options.minutes, progress=tell)


if __name__ == "__main__":
    raise SystemExit(main())
