"""Best of N: the same drawing and judging as the loop, without correction."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ..errors import ReflectionError
from .bench import Bench, OnRound, OnStage
from .record import Record, Stop
from .redraw import first_plan
from .score import Verifier
from .task import Drawer, Task

MAX_PICTURES = 64


def best_of(
    task: Task | Record,
    drawer: Drawer,
    verifier: Verifier,
    seeds: Sequence[int],
    *,
    settings: Mapping[str, Any] | None = None,
    on_stage: OnStage | None = None,
    on_round: OnRound | None = None,
) -> Record:
    """Draws the instruction with every seed, 1 to 64 of them, and scores the pictures.

    A record instead of a task is filled, and keeps the finished pictures when an exception from the drawer or a
    callback cancels. `Record.ranked` gives the pictures in order, the best first.

    Raises:
        ReflectionError: No seed, too many, or one twice, which would draw the same picture twice.
    """
    if not 1 <= len(seeds) <= MAX_PICTURES:
        raise ReflectionError(f"Got {len(seeds)} seeds, but best of N draws 1 to {MAX_PICTURES}; change their number.")
    if len(set(seeds)) != len(seeds):
        raise ReflectionError(f"Among the {len(seeds)} seeds one comes twice; give different ones.")
    record = task if isinstance(task, Record) else Record(task)
    bench = Bench(record, drawer, verifier, settings=settings, on_stage=on_stage, on_round=on_round)
    with bench.at_work():
        for seed in seeds:
            bench.make(first_plan(record.task, seed))
        record.stop = Stop.ALL_DRAWN
    return record
