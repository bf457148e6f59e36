"""What a run has made so far: its rounds, which is best, and why it ended.

A record is passed into a run and filled as rounds finish, so that whatever ends the run, the finished rounds are there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Mapping

from PIL import Image

from ..errors import ReflectionError
from .opinion import Reflection
from .redraw import Origin
from .score import Score
from .task import Task


class Stop(str, Enum):
    """Why a run ended."""

    SATISFIED = "the picture is right"
    OUT_OF_ROUNDS = "all rounds were used"
    NO_HELP = "the last round did not help"
    NO_OPINION = "there was no usable reflection"
    OVERRULED = "the fault that was found is none by the verifier's questions"
    INTERRUPTED = "stopped before the end"
    ALL_DRAWN = "all pictures are drawn"


@dataclass(frozen=True)
class Round:
    """One picture and what was made of it.

    Attributes:
        index: Its place in the record, from 0.
        picture: The picture.
        origin, prompt, seed: How it was made; a given picture may have no seed.
        parent: Index of the round whose reflection it follows, perhaps as others do; None for a first drawing.
        score: The verifier's judgement; without a value where there is none.
        reflection: What was said of it; None where nothing was asked, as in best of N.
        helped: Whether it was judged better than the best before it; None where there was none.
        seconds: Time taken, by stage ("draw", "reflect", "verify").
        settings: The drawer's settings, as given by the caller.
    """

    index: int
    picture: Image.Image
    origin: Origin
    prompt: str
    seed: int | None = None
    parent: int | None = None
    score: Score = field(default_factory=Score)
    reflection: Reflection | None = None
    helped: bool | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Whether the verifier has seen it: not so for a given picture, or one drawn when a run was stopped."""
        return bool(self.score.checks)


class Record:
    """The rounds of one task, over one run or several.

    Attributes: `task`; `rounds`; `best_index` (None before the first round); `picked` (the round that a hand chose
    last, else None) and `picked_at` (how many rounds there were then); `stop` (why the last run ended, None while one
    is under way).
    """

    def __init__(self, task: Task):
        self.task = task
        self.rounds: list[Round] = []
        self.best_index: int | None = None
        self.picked: int | None = None
        self.stop: Stop | None = None
        self.picked_at = 0

    @property
    def best(self) -> Round:
        """The best round so far. Raises ReflectionError when none is finished."""
        if self.best_index is None:
            raise ReflectionError("No picture was finished, so there is no best one; run again.")
        return self.rounds[self.best_index]

    @property
    def rivals(self) -> list[Round]:
        """The rounds that a new one is measured by: since a hand picked a round, that and what came after it."""
        if self.picked is None:
            return list(self.rounds)
        return [self.rounds[self.picked], *self.rounds[self.picked_at :]]

    def add(self, finished: Round) -> None:
        """Appends a round; the first one, and one that helped, is the best from then on."""
        self.rounds.append(finished)
        if self.best_index is None or finished.helped:
            self.best_index = finished.index

    def pick(self, index: int) -> None:
        """A hand chooses a round: it counts as the best whatever its score, and the next run goes on from it.

        Raises ReflectionError for a round that does not exist.
        """
        if not 0 <= index < len(self.rounds):
            raise ReflectionError(
                f"Round {index} was picked, but there are {len(self.rounds)} rounds, counted from 0; pick one of them."
            )
        self.picked = self.best_index = index
        self.picked_at = len(self.rounds)

    def give(
        self, picture: Image.Image, *, prompt: str = "", seed: int | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Takes in a picture that another run or a hand made, as the round to go on from. It is not judged yet.

        `prompt` and `seed` are what it was drawn with, where that is known; `settings` are kept as a round's.
        """
        made = (Origin.GIVEN, prompt or self.task.instruction, seed)
        self.add(Round(len(self.rounds), picture, *made, settings=dict(settings or {})))
        self.pick(len(self.rounds) - 1)

    def lineage(self, index: int) -> list[Round]:
        """The rounds that led to a round, oldest first, without itself."""
        found: list[Round] = []
        parent = self.rounds[index].parent
        while parent is not None:
            found.append(self.rounds[parent])
            parent = self.rounds[parent].parent
        return found[::-1]

    def ranked(self) -> list[Round]:
        """All rounds: the best, then the others by falling score, unscored ones last; of equals the earlier first.

        What could not be answered of a picture counts as not met here.
        """

        def place(entry: Round) -> tuple[bool, bool, float, int]:
            return entry.index != self.best_index, entry.score.value is None, -entry.score.vouched, entry.index

        return sorted(self.rounds, key=place)
