"""Reflection by question, for the published base weights, which were never taught to reflect.

One fixed form is asked for and read strictly. The paper saw reflection fail by inventing requirements for simple
instructions and by calling right pictures wrong (its part on limitations); so the question forbids both, and an answer
out of form is asked for once more and then counts as no opinion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from ..english import is_english, is_latin
from .answers import clean
from .looker import Ask, numbered_pictures, without_number
from .opinion import Earlier, Reflection, Scope
from .task import Task

LABELS = ("VERDICT", "PROBLEM", "KIND", "FIX")
NOTHING = "NONE"
LONGEST_FIX = 400
"""Characters of a correction. A longer one is an essay, not an instruction."""

QUESTION = """{pictures}
It was made for this instruction:
{instruction}

Compare it with the instruction, and with nothing else. Whatever the instruction leaves open is right as it is. \
Do not wish for more detail, another style or better quality. If everything the instruction names is there, the \
picture is right.
Answer in English with these four lines and nothing else:
VERDICT: RIGHT or WRONG
PROBLEM: the one thing that is missing or differs most, or NONE
KIND: ATTRIBUTE (colour, material, lettering, size, a missing detail) or LAYOUT (place, number, arrangement), or NONE
FIX: one short instruction that would correct the picture, or NONE"""

AGAIN = """{question}

An earlier answer could not be used: {reason}. Keep to the four lines."""


class _Unusable(Exception):
    """Why an answer is not of the form."""


def parse(answer: str) -> Reflection:
    """Reads an answer of the fixed form; its own words are not kept in the result.

    Raises _Unusable, within this module, for anything that is not exactly of the form.
    """
    text = clean(answer)
    if not text:
        raise _Unusable("it was empty")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fields = [line.partition(":") for line in lines]
    if [label.strip().upper() for label, _, _ in fields] != list(LABELS):
        language = "" if is_latin(text) else " and it was not in English"
        raise _Unusable(f"it did not have the lines {', '.join(LABELS)} in this order, each once{language}")
    verdict, problem, kind, fix = (value.strip() for _, _, value in fields)
    verdict, kind = (word.removesuffix(".").upper() for word in (verdict, kind))
    empty = [value.removesuffix(".").upper() == NOTHING for value in (problem, kind, fix)]
    if verdict == "RIGHT" and all(empty):
        return Reflection.satisfied()
    if verdict == "RIGHT":
        blank = [label for label, value in zip(LABELS[1:], (problem, kind, fix)) if not value]
        if len(blank) == empty.count(False):
            raise _Unusable(f"it left {', '.join(blank)} empty where {NOTHING} belongs")
        raise _Unusable("it called the picture RIGHT and named a fault")
    if verdict != "WRONG":
        raise _Unusable("its VERDICT was neither RIGHT nor WRONG")
    if empty[0] or empty[2] or not problem or not fix:
        raise _Unusable("it called the picture WRONG without a PROBLEM and a FIX")
    if kind not in ("ATTRIBUTE", "LAYOUT"):
        raise _Unusable("its KIND was neither ATTRIBUTE nor LAYOUT")
    if not is_latin(problem) or not is_english(fix):
        raise _Unusable("it was not in English")
    if len(fix) > LONGEST_FIX:
        raise _Unusable(f"its FIX had {len(fix)} characters, at most {LONGEST_FIX} make an instruction")
    return Reflection.wrong(problem, fix, Scope[kind])


@dataclass(frozen=True)
class PromptedReflector:
    """A `Reflector` that asks the fixed question. Earlier rounds are not shown: the form concerns one picture."""

    ask: Ask

    def __call__(self, task: Task, picture: Image.Image, earlier: Earlier = ()) -> Reflection:
        """Asks, and once more when the answer is not of the form."""
        shown = [*task.references, picture]
        pictures = numbered_pictures(len(task.references))
        question = QUESTION.format(pictures=pictures, instruction=task.instruction)
        answers: list[str] = []
        reason = ""
        for _ in range(2):
            # The reason is part of the second question: a greedy model answers the same question the same again.
            text = AGAIN.format(question=question, reason=reason) if answers else question
            [answer] = self.ask([text], [shown])
            answers.append(clean(answer))
            try:
                read = parse(answer)
            except _Unusable as unusable:
                reason = str(unusable)
                continue
            said = {name: without_number(getattr(read, name), len(task.references)) for name in ("problem", "correction")}
            return replace(read, **said, answers=tuple(answers))
        return Reflection.no_opinion(f"The answer could not be used, nor could the second: {reason}.", answers)
