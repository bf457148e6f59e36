"""From an instruction to the yes/no questions that a picture must pass."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..english import is_another_language, is_latin
from .answers import clean
from .looker import Ask
from .task import Task

MOST = 8
"""Questions about one picture. More cost time and are mostly repetitions."""

QUESTION = """Here is an instruction for a picture:
{instruction}

List what the instruction demands, each as a question that is answered with yes when the picture meets it. One \
demand a question: each thing, its number, its colour or other qualities, its place. Ask only for what the \
instruction says. Write in English, one question a line, at most {most} lines, and nothing else."""

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*")
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = set(
    "any are being both can color colour depicted does each exactly from has have image its located main more only one "
    "picture placed positioned present scene seen shown shows side that the their them there these this visible was "
    "were what where which with and for not".split()
)


def whole_question(task: Task) -> str:
    """The one question that asks for everything at once."""
    return f"Does the picture show everything that this instruction asks for: {task.instruction.strip()}"


def is_grounded(question: str, instruction: str) -> bool:
    """Whether at least half of a question's own words, by their first four letters, occur in the instruction.

    A question about something else is a requirement that the model invented. An instruction in another language shares
    few words with its questions, which are English, so there the question is trusted.
    """
    words = [word.lower() for word in _WORD.findall(question)]
    own = [word for word in words if word not in _COMMON]
    if not own or is_another_language(instruction):
        return True
    stems = {word.lower()[:4] for word in _WORD.findall(instruction)}
    return sum(word[:4] in stems for word in own) * 2 >= len(own)


@dataclass(frozen=True)
class AskedRequirements:
    """Requirements as the model itself reads them out of the instruction, without a picture before its eyes."""

    ask: Ask

    def __call__(self, task: Task) -> list[str]:
        """Up to MOST different questions; empty when none of what the model wrote can be used."""
        [answer] = self.ask([QUESTION.format(instruction=task.instruction, most=MOST)], [[]])
        lines = [_BULLET.sub("", line).strip() for line in clean(answer).splitlines()]
        questions = [line for line in lines if line.endswith("?") and is_latin(line)]
        grounded = [question for question in questions if is_grounded(question, task.instruction)]
        return list(dict.fromkeys(grounded))[:MOST]
