"""Whether a text that a model wrote is in English, without a dictionary."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH = frozenset(
    "the this that these those there with without and not should it its they their where which from into instead than "
    "then to only make add remove replace move put draw turn paint show shows shown clear keep give missing wrong right "
    "left two three four".split()
)
"""Words that hardly any correction or verdict in English goes without. Such as other languages spell alike are left out
("in", "an", "place", "change", "large", "top")."""
ENGLISH_SHARE = 0.1
"""Of a text's words, at least so many must be of those."""
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|「[^」]*」|(?<!\w)'[^']*'(?!\w)")


def is_latin(text: str) -> bool:
    """Whether most letters outside quotation marks, which may hold lettering to be drawn, are of the Latin script."""
    letters = [letter for letter in _QUOTED.sub("", text) if letter.isalpha()]
    return sum(letter < "\u0250" for letter in letters) * 2 >= len(letters)


def is_english(text: str) -> bool:
    """Whether a text is of the Latin script and a tenth of its words outside quotation marks are plain English ones.

    Rules out other languages, also those in Latin letters, and letters thrown together; not what is English and makes
    no sense. Text without any letters is not English.
    """
    words = _WORD.findall(_QUOTED.sub("", text).lower())
    return bool(words) and is_latin(text) and sum(word in _ENGLISH for word in words) >= ENGLISH_SHARE * len(words)
