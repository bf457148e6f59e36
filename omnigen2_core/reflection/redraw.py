"""How a correction is carried out: by editing the picture, or by drawing it again from a corrected prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from PIL import Image

from ..advice import names_a_picture
from ..generation import SEEDS
from .opinion import Reflection, Scope
from .task import Task


class Redraw(str, Enum):
    """The user's choice. `AUTO` edits attributes and draws layouts again, and where that does not do, the other way too.

    Where neither makes the picture better, it draws once more: a third seed may do what two did not.
    """

    AUTO = "auto"
    EDIT = "edit"
    AGAIN = "draw again"


class Origin(str, Enum):
    """How a round's picture came about. `GIVEN` pictures were not drawn by this run."""

    DRAWN = "drawn"
    EDITED = "edited"
    AGAIN = "drawn again"
    GIVEN = "given"


@dataclass(frozen=True)
class Plan:
    """One drawing to be made."""

    origin: Origin
    prompt: str
    references: tuple[Image.Image, ...]
    seed: int


# An edit keeps where things are, so words of place, number and arrangement ask for a new drawing.
_LAYOUT = re.compile(
    r"\b(above|arrange\w*|behind|below|beneath|beside|between|bottom|cent(?:er|re)|composition|corner|count|exactly"
    r"|four|five|front|layout|left|middle|move|number|order|place|position|right|rows?|spac(?:e|ing)|swap|three|top"
    r"|two|under)\b|[上下左右中]",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\breference", re.IGNORECASE)


def guess_scope(correction: str) -> Scope:
    """What a correction is about by its words, for reflectors that do not say."""
    return Scope.LAYOUT if _LAYOUT.search(correction) else Scope.ATTRIBUTE


def _speaks_of_reference(correction: str) -> bool:
    """Whether a correction points at a reference, as "the second image", "image #1" or "the reference's hat" do."""
    return names_a_picture(correction) or bool(_REFERENCE.search(correction))


def first_plan(task: Task, seed: int) -> Plan:
    """The first drawing: the instruction as it is."""
    return Plan(Origin.DRAWN, task.instruction, task.references, seed % SEEDS)


def corrected_prompt(task: Task, reflection: Reflection) -> str:
    """The prompt for drawing again: the reflector's own, else the unchanged instruction and then what to mind.

    The instruction stays whole, since a correction alone would forget everything that was right.
    """
    minded = f"{task.instruction}\nMind this above all: {reflection.correction}"
    return reflection.prompt or (minded if reflection.correction else task.instruction)


def ways(task: Task, reflection: Reflection, redraw: Redraw) -> tuple[Redraw, ...]:
    """How a reflection is followed: in these ways, one after the other, until the picture is right.

    `AUTO` begins with the way that suits the correction. An edit gets the picture alone: references beside it would
    turn the edit into a composition, and shift the numbers by which the correction speaks of images. So where a task has
    references and the correction speaks of one, it only draws again. So does every choice where there is no correction,
    as of a picture that nobody but the judge finds wrong.
    """
    if not reflection.correction:
        return (Redraw.AGAIN,)
    if redraw is not Redraw.AUTO:
        return (redraw,)
    if task.references and _speaks_of_reference(reflection.correction):
        return (Redraw.AGAIN,)
    scope = reflection.scope or guess_scope(reflection.correction)
    return (Redraw.AGAIN, Redraw.EDIT) if scope is Scope.LAYOUT else (Redraw.EDIT, Redraw.AGAIN)


def plan_for(task: Task, reflection: Reflection, picture: Image.Image, way: Redraw, seed: int) -> Plan:
    """The drawing that follows a reflection in one of its `ways`."""
    if way is Redraw.EDIT:
        return Plan(Origin.EDITED, reflection.correction, (picture,), seed % SEEDS)
    return Plan(Origin.AGAIN, corrected_prompt(task, reflection), task.references, seed % SEEDS)
