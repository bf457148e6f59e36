"""What a reflector says of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Sequence

from PIL import Image

from .task import Task


class Verdict(str, Enum):
    """Whether the picture is what the instruction asks for. `NO_OPINION`: the model gave no usable answer."""

    SATISFIED = "satisfied"
    UNSATISFIED = "not satisfied"
    NO_OPINION = "no opinion"


class Scope(str, Enum):
    """How far a correction reaches: attributes can be edited in place, a layout is better drawn again."""

    ATTRIBUTE = "attribute"
    LAYOUT = "layout"


@dataclass(frozen=True)
class Reflection:
    """What is missing or wrong in a picture and how to correct it. Made by `satisfied`, `wrong` or `no_opinion`.

    Raises ValueError when a fault has no correction, which nothing could be done with, or a correction no fault.

    Attributes:
        verdict: The outcome.
        problem: What is missing or wrong against the instruction; empty unless not satisfied.
        correction: An instruction that changes the picture; never empty when not satisfied, else empty.
        scope: What the correction is about, None where the reflector does not say.
        prompt: The whole instruction reworded for drawing again; empty where the reflector gives none.
        note: Why there is no opinion, in one sentence; else empty.
        answers: The model's own words, one text an attempt, kept so that nothing it said is hidden.
    """

    verdict: Verdict
    problem: str = ""
    correction: str = ""
    scope: Scope | None = None
    prompt: str = ""
    note: str = ""
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.verdict is Verdict.UNSATISFIED) != bool(self.correction.strip()):
            raise ValueError(f"A correction belongs to a fault: got {self.correction!r} with '{self.verdict.value}'.")

    @classmethod
    def satisfied(cls, answers: Sequence[str] = ()) -> "Reflection":
        """The picture is right."""
        return cls(Verdict.SATISFIED, answers=tuple(answers))

    @classmethod
    def wrong(
        cls, problem: str, correction: str, scope: Scope | None = None, *, prompt: str = "", answers: Sequence[str] = ()
    ) -> "Reflection":
        """The picture is wrong."""
        return cls(Verdict.UNSATISFIED, problem, correction, scope, prompt, answers=tuple(answers))

    @classmethod
    def no_opinion(cls, note: str, answers: Sequence[str] = ()) -> "Reflection":
        """Nothing usable was said."""
        return cls(Verdict.NO_OPINION, note=note, answers=tuple(answers))


Earlier = Sequence[tuple[Image.Image, Reflection]]
"""The pictures that led to the present one, oldest first, each with what was said of it."""


class Reflector(Protocol):
    """Looks at a picture and says what is missing or wrong in it.

    Raises only what asking the model raises; an answer that cannot be used is a Reflection without opinion.
    """

    def __call__(self, task: Task, picture: Image.Image, earlier: Earlier = ()) -> Reflection: ...
