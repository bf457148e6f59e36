"""How likely Qwen2.5-VL is to begin its answer with yes, against no.

The likelihood of the first token tells a sure yes from a hesitant one, which a written word does not; one forward
pass gives it, without writing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

from PIL import Image

from .assistant import Assistant, OnStep, check_batch, pictures_of
from .errors import CheckpointError
from .prompts import OmniGen2Tokenizer, chat_prompt

YES_FORMS = ("yes", "Yes", "YES", " yes", " Yes")
NO_FORMS = ("no", "No", "NO", " no", " No")


@dataclass(frozen=True)
class YesNo:
    """Natural logarithms, at most 0, of the chance that an answer begins with yes and that it begins with no."""

    log_yes: float
    log_no: float

    @property
    def probability(self) -> float:
        """Of yes, 0..1, if the answer is one of the two."""
        odds = max(-700.0, min(700.0, self.log_no - self.log_yes))
        return 1.0 / (1.0 + math.exp(odds))

    @property
    def mass(self) -> float:
        """How likely the answer is one of the two at all, 0..1. Where it is small, the question was not understood."""
        return min(1.0, math.exp(self.log_yes) + math.exp(self.log_no))


def yes_no_ids(tokenizer: OmniGen2Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that an answer of yes may begin with, and those of no.

    Words that are one token count alone where there are any: a first letter begins other words too. A token that
    begins both, such as a space of its own, tells nothing and is left out. Raises CheckpointError when nothing remains.
    """
    yes, no = (_beginnings(tokenizer, forms) for forms in (YES_FORMS, NO_FORMS))
    if not yes - no or not no - yes:
        raise CheckpointError(
            "The tokenizer begins 'yes' and 'no' with the same token, so their chances cannot be compared. "
            "Use the tokenizer in OmniGen2's processor folder."
        )
    return sorted(yes - no), sorted(no - yes)


def _beginnings(tokenizer: OmniGen2Tokenizer, forms: Sequence[str]) -> set[int]:
    rows = [tokenizer.encode(form) for form in forms]
    return {row[0] for row in rows if len(row) == 1} or {row[0] for row in rows}


def ask_yes_no(
    assistant: Assistant,
    questions: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    *,
    batch: int = 4,
    on_step: OnStep | None = None,
) -> list[YesNo]:
    """Each question, put in the chat template with its own images, and how likely its answer begins with yes or no.

    Args:
        assistant: Who is asked.
        questions: Texts that can be answered by yes or no.
        images: For every question the list of its pictures, of any mode and size, so for one question [[picture]]; a
            list may be empty.
        batch: Questions in one forward pass, at least 1. Every one carries its own images, which memory has to hold.
        on_step: Called before every pass with the number of tokens written, which is 0. May raise to cancel.

    Raises:
        CheckpointError: The model cannot see, or the tokenizer cannot tell yes from no.
        PromptError: A question holds an image placeholder; there are not as many lists of pictures as questions; or
            `batch` is below 1.
        ReferenceImageError: A picture is not in a list.
        SizeError: A picture is too thin.
    """
    yes, no = yes_no_ids(assistant.tokenizer)
    check_batch(batch)
    asked = list(zip(questions, pictures_of(questions, images)))
    results: list[YesNo] = []
    for start in range(0, len(asked), batch):
        if on_step is not None:
            on_step(0)
        some = asked[start : start + batch]
        chats = [chat_prompt(question, len(own)) for question, own in some]
        log = assistant.first_log_probabilities(chats, [own for _, own in some])
        pairs = zip(log[:, yes].logsumexp(dim=1).tolist(), log[:, no].logsumexp(dim=1).tolist())
        # Rounding may leave the logarithm of a certainty a little above 0.
        results += [YesNo(min(0.0, log_yes), min(0.0, log_no)) for log_yes, log_no in pairs]
    return results
