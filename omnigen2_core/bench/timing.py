"""Seconds of things that are compared: one after the other, again and again, so that what slows a machine down slows
both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Hashable, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
MOST_ROUNDS = 15


@dataclass(frozen=True)
class Effort:
    """How often to measure: so often that it takes about `seconds`, but at least `least` times."""

    seconds: float
    least: int = 5

    def rounds(self, seconds_of_one: float) -> int:
        """Rounds to measure where one takes so long."""
        return max(self.least, min(MOST_ROUNDS, int(self.seconds / max(seconds_of_one, 1e-9))))


def interleaved(actions: Mapping[Key, Callable[[], object]], effort: Effort, device: torch.device) -> dict[Key, list[float]]:
    """Seconds of each action in each round. A first round warms up and says how many there are."""
    warm = sum(seconds_of(action, device) for action in actions.values())
    return in_rounds(actions, effort.rounds(warm), device)


def in_rounds(actions: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device) -> dict[Key, list[float]]:
    """Seconds of each action in each round. Every other round goes backwards, so that no action always follows the same
    one.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in actions}
    for number in range(rounds):
        order = list(actions.items())
        for key, action in order if number % 2 == 0 else reversed(order):
            seconds[key].append(seconds_of(action, device))
    return seconds


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """How long the device takes for it."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
