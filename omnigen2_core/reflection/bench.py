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
from .opinion import Reflection, Reflector
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
        """Draws, judges and records one picture. A picture that is drawn when the run is stopped is kept unjudged."""
        index = len(self.record.rounds)
        seconds: dict[str, float] = {}
        draw = self.editor if plan.origin is Origin.EDITED else self.drawer
        with self._stage(Stage.DRAW, index, seconds):
            picture = draw(plan.prompt, plan.references, plan.seed)

        def finished(score: Score, reflection: Reflection | None, helped: bool | None) -> Round:
            made = (plan.origin, plan.prompt, plan.seed, parent)
            return Round(index, picture, *made, score, reflection, helped, seconds, self.settings)

        try:
            score, reflection = self._look(index, picture, seconds, self._earlier(parent))
            helped = None
            if self.record.rounds:
                with self._stage(Stage.VERIFY, index, seconds):
                    helped = takes_lead(self.record, self._examine(), picture, score, reflection)
        except BaseException:
            unsaid = None if self.reflector is None else Reflection.no_opinion(UNJUDGED)
            self.record.add(finished(Score(note=UNJUDGED), unsaid, None))
            raise
        made = finished(score, reflection, helped)
        self.record.add(made)
        if self.on_round is not None:
            self.on_round(made, self.record)
        return made

    def judge_given(self, entry: Round) -> Round:
        """Judges a round of which there is no opinion: a given picture, one that an interrupted run left, or one that
        an earlier run could not judge. Replaces it."""
        seconds = dict(entry.seconds)
        score, reflection = self._look(entry.index, entry.picture, seconds, self._earlier(entry.parent))
        judged = replace(entry, score=score, reflection=reflection, seconds=seconds)
        self.record.rounds[entry.index] = judged
        if self.on_round is not None:
            self.on_round(judged, self.record)
        return judged

    def _look(
        self, index: int, picture: Image.Image, seconds: dict[str, float], earlier: list[tuple[Image.Image, Reflection]]
    ) -> tuple[Score, Reflection | None]:
        reflection = None
        if self.reflector is not None:
            with self._stage(Stage.REFLECT, index, seconds):
                reflection = self.reflector(self.record.task, picture, earlier)
        with self._stage(Stage.VERIFY, index, seconds):
            score = self._examine().score(picture)
        return score, reflection

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
