"""The checkpoint's own MLLM as one who looks at pictures and answers."""

from __future__ import annotations

from typing import Sequence

from .. import understanding
from ..assistant import Assistant, OnStep
from ..yes_no import YesNo, ask_yes_no
from .looker import Looker, Shown

MAX_NEW_TOKENS = 200
"""Enough for the longest form that is asked for."""


def model_looker(
    assistant: Assistant, *, batch: int = 4, max_new_tokens: int = MAX_NEW_TOKENS, on_step: OnStep | None = None
) -> Looker:
    """Greedy answers in words, and likelihoods of yes and no.

    `batch` questions are asked in one pass; `on_step` gets the number of tokens written, at the least once a pass, and
    may raise to cancel. The looker raises what `Assistant.write` does.
    """

    def ask(questions: Sequence[str], images: Shown) -> list[str]:
        # Unlike a user's question, one of the loop's may have more than five pictures: the references, and one or two
        # that are judged.
        answers = understanding.ask(
            assistant, questions, images, max_images=None, max_new_tokens=max_new_tokens, batch=batch, on_step=on_step
        )
        return [answer.text for answer in answers]

    def yes_no(questions: Sequence[str], images: Shown) -> list[YesNo]:
        return ask_yes_no(assistant, questions, images, batch=batch, on_step=on_step)

    return Looker(ask, yes_no)
