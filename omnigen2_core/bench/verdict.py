"""Ratios with the spread of the pairs that they come from, and what they say of a bar."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Hashable

HOLDS, FAILS, NOISY = "holds", "does not hold", "too noisy to tell"
BY_FLOOR = "holds by the floor"
RESAMPLES = 2000
CONFIDENCE = 0.95

Group = Mapping[Hashable, Sequence[float]]
"""Seconds that were measured in the same rounds: a list for each, of one length."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the 95 % interval around it."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """A figure without spread."""
        return cls(value, value, value)


def estimate(groups: Sequence[Group], figure: Callable[[Mapping[Hashable, float]], float]) -> Estimate:
    """What `figure` makes of the typical seconds, with the interval over the rounds.

    What slows the machine for a whole round slows all that is measured in it, so each round is first brought to its
    group's pace; typical is the median of what remains, times the median pace. Percentile bootstrap: rounds are drawn
    anew with replacement, each group's by itself and all of a group's lists alike, so a pair stays one.
    """
    draw, paced = random.Random(0), [_paced(group) for group in groups]

    def typical(rounds: Sequence[Sequence[int]]) -> dict[Hashable, float]:
        found = {}
        for (paces, group), chosen in zip(paced, rounds):
            pace = median(paces[i] for i in chosen)
            found |= {key: pace * median(seconds[i] for i in chosen) for key, seconds in group.items()}
        return found

    counts = [len(paces) for paces, _ in paced]
    found = sorted(
        figure(typical([draw.choices(range(count), k=count) for count in counts])) for _ in range(RESAMPLES)
    )
    outside = int((1 - CONFIDENCE) / 2 * RESAMPLES)
    value = figure(typical([range(count) for count in counts]))
    return Estimate(value, min(value, found[outside]), max(value, found[-1 - outside]))


def _paced(group: Group) -> tuple[list[float], dict[Hashable, list[float]]]:
    """How slow each round was (the geometric mean over what was measured in it, against its median), and the seconds of
    all rounds at one pace."""
    typical = {key: median(seconds) for key, seconds in group.items()}
    paces = [
        geometric_mean(seconds[i] / typical[key] for key, seconds in group.items())
        for i in range(len(next(iter(group.values()))))
    ]
    return paces, {key: [value / pace for value, pace in zip(seconds, paces)] for key, seconds in group.items()}


@dataclass(frozen=True)
class Bar:
    """What a figure must reach, or with `at_most` must not exceed."""

    limit: float
    at_most: bool = False

    def verdict(self, found: Estimate) -> str:
        """Whether it holds for the whole interval, for none of it, or for a part."""
        best, worst = (found.low, found.high) if self.at_most else (found.high, found.low)
        if self._holds(worst):
            return HOLDS
        return NOISY if self._holds(best) else FAILS

    def _holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


def or_floor(verdict: str, floor: str) -> str:
    """Of a bar in whose place enough of the floor may be reached."""
    if verdict == HOLDS:
        return HOLDS
    if floor == HOLDS:
        return BY_FLOOR
    return NOISY if NOISY in (verdict, floor) else FAILS
