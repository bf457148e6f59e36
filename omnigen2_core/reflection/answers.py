"""Strict reading of short answers: what is not exactly of the form asked for is no answer, and is never guessed at."""

from __future__ import annotations

import re

LONGEST = 4000
"""Characters of an answer that are kept; a model that rambles must not fill the transcript."""

_TOKEN_NAMES = re.compile(r"<\|[^|<>]*\|>")


def clean(answer: str) -> str:
    """An answer without names of special tokens, which would act as tokens in a later prompt, and of bounded length."""
    # Taking a name out may join its surroundings to another one.
    while (shorter := _TOKEN_NAMES.sub("", answer)) != answer:
        answer = shorter
    return answer.strip()[:LONGEST]


def read_yes_no(answer: str) -> bool | None:
    """True for yes, False for no, None for anything else. Words may follow only behind a punctuation mark."""
    match = re.match(r"(yes|no)\b\s*(?:[.,;:!–—]|$)", clean(answer), re.IGNORECASE)
    return None if match is None else match[1].lower() == "yes"


def read_choice(answer: str, choices: str) -> str | None:
    """The one letter of `choices` that is the whole answer, a full stop aside; None for anything else."""
    letter = clean(answer).removesuffix(".").upper()
    return letter if len(letter) == 1 and letter in choices else None
