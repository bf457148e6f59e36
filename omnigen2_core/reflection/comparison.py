"""Whether a new picture takes the lead."""

from __future__ import annotations

from PIL import Image

from .opinion import Reflection, Verdict
from .record import Record
from .score import Examiner, Score

CLOSE = 0.05
"""Scores that differ by no more than this are compared as pictures."""


def takes_lead(
    record: Record, examiner: Examiner, picture: Image.Image, score: Score, reflection: Reflection | None
) -> bool:
    """Whether a picture is judged better than the best of the record so far. When in doubt it is not.

    Scores decide where they differ by more than `CLOSE`, then the pictures side by side, then the reflector's verdict
    where it calls one right and the other not, then any difference of the scores. A picture without a score has no
    claim, and in the lead it gives way where nothing else decides. None that is more than `CLOSE` below the highest
    score has a claim either: a row of close comparisons would otherwise lead downhill.
    """
    best, value = record.best, score.value
    if value is None:
        return False
    highest, reached = record.highest, best.score.value
    if highest is not None and value < highest - CLOSE:
        return False
    if reached is not None and value > reached + CLOSE:
        return True
    preferred = examiner.prefer(best.picture, picture)
    if preferred is not None:
        return preferred == 1
    before, after = _is_right(best.reflection), _is_right(reflection)
    if before != after:
        return after
    return reached is None or value > reached


def _is_right(reflection: Reflection | None) -> bool:
    return reflection is not None and reflection.verdict is Verdict.SATISFIED
