"""One run's tools at work: draw, look, judge, put into the record. The loop and best of N share it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import Any, Callable, Iterator

from PIL import Image

from .comparison import takes_lead
from .opinion import Reflection, Reflector, Verdict
from .record import Record, Round, Stop
from .redraw import Origin, Plan
from .score import Examiner, Score, Verifier
from .task import Drawer, Editor
from .transcript import check_settings

UNJUDGED = "The run was stopped before this picture was judged."


class Stage(str, Enum):
    """What a run is about to do."""

    DRAW = "draw"
    REFLECT = "reflect"
    VERIFY = "verify"


OnStage = Callable[[Stage, int], None]
"""Called before every stage with the index of its round; an exception from it ends the run there."""

OnRound = Callable[[Round, Record], None]
"""Called when a round is finished and in the record; an exception from it ends the run there."""


class Bench:
    """The tools of one run and the record they fill. Use as `with bench.at_work():`."""

    def __init__(
        self,
        record: Record,
        drawer: Drawer,
        verifier: Verifier,
        *,
        reflector: Reflector | None = None,
        editor: Editor | None = None,
        settings: Mapping[str, Any] | None = None,
        on_stage: OnStage | None = None,
        on_round: OnRound | None = None,
    ):
        self.record = record
        self.drawer = drawer
        self.editor = editor or drawer
        self.verifier = verifier
        self.reflector = reflector
        self.settings = check_settings(settings or {})
        self.on_stage = on_stage
        self.on_round = on_round
        self._examiner: Examiner | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Notes in the record that the run is under way, and, when anything at all is raised, that it was stopped."""
        self.record.stop = None
        try:
            yield
        except BaseException:
            self.record.stop = Stop.INTERRUPTED
            raise

    def make(self, plan: Plan, parent: int | None = None) -> Round:
        """Draws, judges and records one picture. When the run is stopped, a picture that is drawn is kept with what was
        said of it by then."""
        index = len(self.record.rounds)
        seconds: dict[str, float] = {}
        draw = self.editor if plan.origin is Origin.EDITED else self.drawer
        with self._stage(Stage.DRAW, index, seconds):
            picture = draw(plan.prompt, plan.references, plan.seed)
        unsaid = None if self.reflector is None else Reflection.no_opinion(UNJUDGED)
        made = (plan.origin, plan.prompt, plan.seed, parent)
        entry = Round(index, picture, *made, Score(note=UNJUDGED), unsaid, seconds=seconds, settings=self.settings)
        try:
            entry = self._reflected(entry)
            with self._stage(Stage.VERIFY, index, seconds):
                entry = replace(entry, score=self._examine().score(picture))
                if self.record.rounds:
                    if entry.score.value is not None:
                        self._examine_best()
                    entry = replace(entry, helped=takes_lead(self.record, self._examine(), picture, entry.score, entry.reflection))
        finally:
            self.record.add(entry)
        self._tell(entry)
        return entry

    def complete(self, entry: Round) -> Round:
        """A round of the record with an opinion on it and a judgement of it; what it lacks of them is asked for. So it is
        with a given picture, one that an interrupted run left, or one that an earlier run could not judge."""
        if self._has_opinion(entry) and entry.judged:
            return entry
        entry = replace(entry, seconds=dict(entry.seconds))
        try:
            if not self._has_opinion(entry):
                entry = self._reflected(entry)
            if not entry.judged:
                with self._stage(Stage.VERIFY, entry.index, entry.seconds):
                    entry = replace(entry, score=self._examine().score(entry.picture))
        finally:
            self.record.rounds[entry.index] = entry
        self._tell(entry)
        return entry

    def _reflected(self, entry: Round) -> Round:
        if self.reflector is None:
            return entry
        with self._stage(Stage.REFLECT, entry.index, entry.seconds):
            return replace(entry, reflection=self.reflector(self.record.task, entry.picture, self._earlier(entry.parent)))

    @staticmethod
    def _has_opinion(entry: Round) -> bool:
        return entry.reflection is not None and entry.reflection.verdict is not Verdict.NO_OPINION

    def _examine_best(self) -> None:
        """A best round that another run judged by other questions is judged by this one's, to be compared with."""
        best, examiner = self.record.best, self._examine()
        if best.judged and tuple(check.question for check in best.score.checks) != examiner.questions:
            self.record.rounds[best.index] = replace(best, score=examiner.score(best.picture))

    def _tell(self, entry: Round) -> None:
        if self.on_round is not None:
            self.on_round(entry, self.record)

    def _examine(self) -> Examiner:
        if self._examiner is None:
            self._examiner = self.verifier.examiner(self.record.task)
        return self._examiner

    def _earlier(self, parent: int | None) -> list[tuple[Image.Image, Reflection]]:
        if parent is None:
            return []
        before = [*self.record.lineage(parent), self.record.rounds[parent]]
        return [(entry.picture, entry.reflection) for entry in before if entry.reflection is not None]

    @contextmanager
    def _stage(self, stage: Stage, index: int, seconds: dict[str, float]) -> Iterator[None]:
        if self.on_stage is not None:
            self.on_stage(stage, index)
        start = time.perf_counter()
        yield
        seconds[stage.value] = seconds.get(stage.value, 0.0) + time.perf_counter() - start
