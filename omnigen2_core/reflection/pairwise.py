"""Which of two pictures follows an instruction better, where their scores are too close to tell."""

from __future__ import annotations

from PIL import Image

from .answers import read_choice
from .looker import Ask, numbered_references
from .task import Task

QUESTION = """{references}The last two images are the candidates A and B, in this order. Both were made for this \
instruction:
{instruction}

Which of them follows the instruction better? Judge by nothing but the instruction. Answer with one letter: A, B, or S \
if there is no difference."""


def better_of(ask: Ask, task: Task, first: Image.Image, second: Image.Image) -> int | None:
    """0 or 1 for the better picture; None for no difference, no usable answer, or answers that contradict.

    Both orders are asked for: models favour a position, so only what outlasts the swap counts.
    """
    references = numbered_references(len(task.references))
    question = QUESTION.format(references=references, instruction=task.instruction)
    shown = [[*task.references, first, second], [*task.references, second, first]]
    forward, backward = (read_choice(answer, "ABS") for answer in ask([question, question], shown))
    return {("A", "B"): 0, ("B", "A"): 1}.get((forward, backward))
