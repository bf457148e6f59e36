"""Whether a new picture takes the lead."""

from __future__ import annotations

from PIL import Image

from .opinion import Reflection, Verdict
from .record import Record
from .score import Examiner, Score, values_in_common

CLOSE = 0.05
"""Scores that differ by no more than this are compared as pictures."""


def takes_lead(
    record: Record, examiner: Examiner, picture: Image.Image, score: Score, reflection: Reflection | None
) -> bool:
    """Whether a picture is judged better than the best of the record so far. When in doubt it is not.

    Scores decide where they differ by more than `CLOSE`, then the pictures side by side, then the reflector's verdict
    where it calls one right and the other not, then any difference of the scores; of the scores those questions count
    that both pictures have an answer to. A picture without a score has no claim, and in the lead it gives way where
    nothing else decides. None that is more than `CLOSE` below any other has a claim either: a row of close comparisons
    would otherwise lead downhill.
    """
    best = record.best
    if score.value is None:
        return False
    if any(_rise(rival.score, score) < -CLOSE for rival in record.rivals):
        return False
    rise = _rise(best.score, score)
    if rise > CLOSE:
        return True
    preferred = examiner.prefer(best.picture, picture)
    if preferred is not None:
        return preferred == 1
    before, after = _is_right(best.reflection), _is_right(reflection)
    if before != after:
        return after
    return best.score.value is None or rise > 0


def _rise(before: Score, after: Score) -> float:
    """By how much the second score is the higher one; 0 where they have nothing in common to be told by."""
    values = values_in_common(before, after)
    return 0.0 if values is None else values[1] - values[0]


def _is_right(reflection: Reflection | None) -> bool:
    return reflection is not None and reflection.verdict is Verdict.SATISFIED
