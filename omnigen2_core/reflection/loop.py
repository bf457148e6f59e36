"""Draw, look, correct, look again: the reflection loop.

After the paper's section on reflection (arXiv 2506.18871): the model looks at what it drew, writes what is wrong, and
draws once more. The paper reports two ways in which that fails, and the loop is built against both. *Over-reflection*,
faults found in a right picture: a correction is only followed where the verifier's own questions leave room for a
fault. *A wrong reflection followed*: a round must be judged better than the best before it, else it is set aside, so
the result is never one that was judged worse than an earlier round; and a reflection that does not help ends the loop.
The opposite of the first, a wrong picture called right, has its guard too: one that the verifier's questions speak
clearly against is drawn again.
"""

from __future__ import annotations

import itertools
from typing import Any, Mapping

from ..errors import ReflectionError
from .bench import Bench, OnRound, OnStage
from .opinion import Reflection, Reflector, Verdict
from .record import Record, Round, Stop
from .redraw import Redraw, first_plan, plan_for, ways
from .score import Verifier
from .task import Drawer, Editor, Task

MAX_ROUNDS = 5
OVERRULE = 0.8
"""If the verifier holds every requirement to be met with at least this chance, a fault that was found is none."""
DOUBT = 0.3
"""If the verifier holds a requirement to be met with less than this chance, a picture that is called right is not."""


def reflect(
    task: Task | Record,
    drawer: Drawer,
    reflector: Reflector,
    verifier: Verifier,
    *,
    rounds: int = 2,
    redraw: Redraw = Redraw.AUTO,
    editor: Editor | None = None,
    seed: int = 0,
    correction: str = "",
    overrule: float = OVERRULE,
    doubt: float = DOUBT,
    settings: Mapping[str, Any] | None = None,
    on_stage: OnStage | None = None,
    on_round: OnRound | None = None,
) -> Record:
    """Draws a picture and corrects it for as long as that helps.

    Args:
        task: What to draw; or a record, empty or of an earlier run, which is filled. A record with rounds is gone on
            with from its best one, or from the one that `Record.pick` or `Record.give` chose. Pass a record to keep
            the finished rounds when the run is cancelled by an exception, which comes through as it is.
        drawer, editor: Draw and edit; without an editor the drawer edits too.
        reflector: Says what is wrong.
        verifier: Scores, and thereby decides what is best.
        rounds: Reflections that are followed at most, 0..5. With 0 the picture is drawn and judged, not corrected.
        redraw: How they are followed: in one way and one picture, or with `Redraw.AUTO` in both ways and up to three.
        seed: Of the first picture; picture i has `seed + i`, or the next that no round has, so that drawing again does not
            draw the same.
        correction: The user's own words for the first correction; they are followed without asking.
        overrule: Chance 0..1 of every requirement from which on the verifier overrules a fault; above 1 never.
        doubt: Chance 0..1 of a requirement below which the verifier does not take a picture for right; at 0 never. With
            `Redraw.EDIT` there would be nothing to edit by, and the picture counts as right.
        settings: The drawer's settings, for the transcript; see `transcript.check_settings`.
        on_stage, on_round: See `bench`; an exception from them cancels.

    Returns:
        The record; `Record.best` is the result.

    Raises:
        ReflectionError: `rounds` is out of range.
        Anything that the drawer, the models or the callbacks raise.
    """
    if not 0 <= rounds <= MAX_ROUNDS:
        raise ReflectionError(f"rounds is {rounds}, but a run has 0 to {MAX_ROUNDS}; choose a number in that range.")
    redraw = Redraw(redraw)
    record = task if isinstance(task, Record) else Record(task)
    bench = Bench(
        record,
        drawer,
        verifier,
        reflector=reflector,
        editor=editor,
        settings=settings,
        on_stage=on_stage,
        on_round=on_round,
    )
    limits = (overrule, 0.0 if redraw is Redraw.EDIT else doubt)
    with bench.at_work():
        current = _start(bench, seed)
        spoken = _spoken(correction)
        for _ in range(rounds):
            if spoken is None and (stop := _reason_to_stop(current, *limits)) is not None:
                record.stop = stop
                return record
            before, said, spoken = current, spoken or current.reflection, None
            for way in ways(record.task, said, redraw):
                made = _redrawn(bench, before, said, way, seed)
                if made.helped:
                    current = made
                    if _reason_to_stop(made, *limits) is not None:
                        break
            if current is before and redraw is Redraw.AUTO:
                made = _redrawn(bench, before, said, Redraw.AGAIN, seed)
                current = made if made.helped else before
            if current is before:
                record.stop = Stop.NO_HELP
                return record
        record.stop = _reason_to_stop(current, *limits) or Stop.OUT_OF_ROUNDS
    return record


def _start(bench: Bench, seed: int) -> Round:
    if not bench.record.rounds:
        return bench.make(first_plan(bench.record.task, seed))
    return bench.complete(bench.record.best)


def _redrawn(bench: Bench, before: Round, said: Reflection, way: Redraw, seed: int) -> Round:
    rounds = bench.record.rounds
    # A record that does not hold all earlier rounds has fewer of them than there were seeds.
    drawn = {entry.seed for entry in rounds}
    fresh = next(own for own in itertools.count(seed + len(rounds)) if own not in drawn)
    return bench.make(plan_for(bench.record.task, said, before.picture, way, fresh), parent=before.index)


def _spoken(correction: str) -> Reflection | None:
    """The user's own correction as a reflection; None without one."""
    words = correction.strip()
    return Reflection.wrong("named by hand", words) if words else None


def _reason_to_stop(current: Round, overrule: float, doubt: float) -> Stop | None:
    said, score = current.reflection, current.score
    if said is None or said.verdict is Verdict.NO_OPINION:
        return Stop.NO_OPINION
    if said.verdict is Verdict.SATISFIED:
        return None if score.worst is not None and score.worst < doubt else Stop.SATISFIED
    return Stop.OVERRULED if score.least >= overrule else None
