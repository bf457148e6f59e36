"""The seam to whatever answers questions about pictures: the model's own MLLM, or an endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Sequence

from PIL import Image

from ..yes_no import YesNo

Shown = Sequence[Sequence[Image.Image]]
"""For every question its pictures, in the order in which the question numbers them."""

Ask = Callable[[Sequence[str], Shown], Sequence[str]]
"""Questions, each with its pictures, to one answer each; a question may come without a picture."""

AskYesNo = Callable[[Sequence[str], Shown], Sequence[YesNo]]
"""The same for yes/no questions, to how likely the first token of each answer is yes or no."""


@dataclass(frozen=True)
class Looker:
    """One who looks at pictures and answers.

    Attributes:
        ask: Answers in words. Greedy answers make a run repeatable.
        yes_no: Likelihoods of yes and no, where the model gives them: a better score than a parsed word.
    """

    ask: Ask
    yes_no: AskYesNo | None = None


def numbered_references(count: int) -> str:
    """How a question speaks of the references that come before its other pictures; empty without any."""
    if not count:
        return ""
    which = "Image 1 is a reference" if count == 1 else f"Images 1 to {count} are references"
    return f"{which} that the instruction may speak of. "


def without_number(text: str, references: int) -> str:
    """What was said of pictures numbered so, with the one in question by name: whoever draws does not know its number."""
    if not references:
        return text
    number, ordinal = references + 1, ("second", "third", "fourth", "fifth", "sixth")[references - 1 : references]
    # Behind an article a number may count what comes next, as in "add to the image 2 apples".
    forms = [rf"(?<!\w)(?<!\bthe )(?:image|picture)s?\s*(?:no\.|number)?[\s#:_-]*(?:\({number}\)|{number}\b)", rf"<img{number}>"]
    forms += [rf"(?:\bthe\s+|(?<!\w)){word}\s+(?:image|picture)\b" for word in ordinal]
    return re.sub("|".join(forms), "the picture", text, flags=re.IGNORECASE)


def numbered_pictures(references: int) -> str:
    """How a question speaks of its pictures: `references` of them first, then the one in question."""
    if not references:
        return "Look at the picture."
    return f"{numbered_references(references)}Image {references + 1} is the picture in question."
