"""How well a picture does what was asked, requirement by requirement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from .task import Task


@dataclass(frozen=True)
class Check:
    """A requirement as a yes/no question, the chance of yes (0..1, None: no usable answer), and the answer's words."""

    question: str
    probability: float | None
    answer: str = ""


@dataclass(frozen=True)
class Score:
    """A verifier's judgement of one picture. `note` says in one sentence what could not be judged, else it is empty."""

    checks: tuple[Check, ...] = ()
    note: str = ""

    @property
    def value(self) -> float | None:
        """The expected share of requirements that are met, 0..1; None when no question was answered."""
        known = [check.probability for check in self.checks if check.probability is not None]
        return sum(known) / len(known) if known else None

    @property
    def vouched(self) -> float:
        """The same, 0..1, with a requirement that has no answer as one that is not met: nothing vouches for it."""
        return sum(check.probability or 0.0 for check in self.checks) / len(self.checks) if self.checks else 0.0

    @property
    def least(self) -> float:
        """The chance of the requirement least likely met, 0..1. Nothing vouches for one without an answer: it is 0."""
        return min((check.probability or 0.0 for check in self.checks), default=0.0)

    @property
    def worst(self) -> float | None:
        """The same among the requirements with an answer: one without speaks against nothing either. None without any."""
        return min((check.probability for check in self.checks if check.probability is not None), default=None)


def values_in_common(first: Score, second: Score) -> tuple[float, float] | None:
    """The values of two scores over the questions that both have an answer to; None where there are none.

    A picture of which less could be told would else be ahead of one that was judged in full.
    """
    answered = [{c.question: c.probability for c in score.checks if c.probability is not None} for score in (first, second)]
    both = answered[0].keys() & answered[1].keys()
    if not both:
        return None
    one, other = (sum(known[question] for question in both) / len(both) for known in answered)
    return one, other


class Examiner(Protocol):
    """Judges pictures for one task. Made for one run, so that every picture is asked the same questions.

    `questions` are these, as the checks of a score name them.
    """

    @property
    def questions(self) -> tuple[str, ...]: ...

    def score(self, picture: Image.Image) -> Score:
        """Asks every requirement about the picture."""

    def prefer(self, first: Image.Image, second: Image.Image) -> int | None:
        """0 when the first picture follows the instruction better, 1 for the second, None where it cannot tell."""


class Verifier(Protocol):
    """Knows how to judge pictures for any task."""

    def examiner(self, task: Task) -> Examiner:
        """Finds the requirements of the task's instruction."""
