"""What a run computed and saved, as a few short texts that can be kept, compared and replayed.

For each branch one letter a step:

    F  all layers, text and references included       S  none of the layers    B  the first layer alone
    I  all layers, the image's tokens alone           s, b  likewise, without computing text and references
    -  not evaluated, another branch stood in         .  the guidance asks for no such branch at this step
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .protocol import Work

Pattern = Mapping[str, str]
"""By branch, in the order in which they are evaluated."""

_ASKED_FOR_NOTHING = "."
_OMITTED = "-"
_WHOLE = {"F": ("full", True), "I": ("image", False)}
_SKIPPED = {"S": (0, True), "s": (0, False), "B": (1, True), "b": (1, False)}


def pattern_of(record: Iterable[Work]) -> dict[str, str]:
    """The letters of a run's record.

    Raises ValueError for work that has no letter: more than the first layer, but not all.
    """
    record = list(record)
    steps = 1 + max((work.step for work in record), default=-1)
    rows: dict[str, list[str]] = {}
    for work in record:
        rows.setdefault(work.branch, [_ASKED_FOR_NOTHING] * steps)[work.step] = _letter(work)
    return {branch: "".join(row) for branch, row in rows.items()}


def record_of(pattern: Pattern, layers: int = 32) -> list[Work]:
    """The record of a run with this pattern, by a transformer of so many main layers.

    At each step what is evaluated comes first, in the order of the branches, as in a run.

    Raises ValueError for a letter that stands for nothing.
    """
    steps = max(map(len, pattern.values()), default=0)
    record: list[Work] = []
    for step in range(steps):
        asked = [(branch, row[step]) for branch, row in pattern.items() if row[step] != _ASKED_FOR_NOTHING]
        asked.sort(key=lambda pair: pair[1] == _OMITTED)
        record += [_work(step, branch, letter, layers) for branch, letter in asked]
    return record


def _letter(work: Work) -> str:
    if work.kind == "omitted":
        return _OMITTED
    if work.kind != "skipped":
        return "F" if work.kind == "full" else "I"
    for letter, parts in _SKIPPED.items():
        if parts == (work.layers, work.context):
            return letter
    raise ValueError(f"{work.layers} of the layers ran at step {work.step}; a pattern knows none, the first, and all.")


def _work(step: int, branch: str, letter: str, layers: int) -> Work:
    if letter == _OMITTED:
        return Work(step, branch, "omitted")
    if letter in _WHOLE:
        kind, context = _WHOLE[letter]
        return Work(step, branch, kind, layers, context)
    if letter not in _SKIPPED:
        raise ValueError(f"{letter!r} at step {step} of {branch} is no letter of a pattern; use one of F I S s B b - and the point.")
    ran, context = _SKIPPED[letter]
    return Work(step, branch, "skipped", ran, context)
