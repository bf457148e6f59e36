"""What the bench finds, as plain values that a table and a JSON file are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from .verdict import BY_FLOOR, HOLDS, Bar, Estimate

POINTS = " points"
"""The unit of a change of a rate, whose sign is told."""


@dataclass(frozen=True)
class RunRow:
    """A run of one path: seconds, evaluations of the transformer, and what the figure is. note: what else to know."""

    case: str
    path: str
    steps: int
    evaluations: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A figure beside its bar. unit: behind the figure. bar: None where it is told, not asked for."""

    what: str
    found: Estimate
    unit: str = "×"
    bar: Bar | None = None
    verdict: str = ""

    @classmethod
    def judged(cls, what: str, found: Estimate, bar: Bar | None, unit: str = "×") -> "Claim":
        """With the verdict that follows from figure and bar, where there is one."""
        return cls(what, found, unit, bar, bar.verdict(found) if bar else "")


@dataclass(frozen=True)
class Floor:
    """A run's arithmetic, the seconds it would take at the rate that matrix products reach, and ours as a share of it."""

    case: str
    flops: float
    rate: float
    seconds: float
    share: Estimate
    native_share: Estimate | None


@dataclass(frozen=True)
class StepRow:
    """Where the time goes: one kind of step, median seconds of both, and how often a run of 50 steps of ours does it."""

    case: str
    kind: str
    tokens: str
    count: int
    ours: float
    native: float | None
    pairs: int
    difference: float | None


@dataclass(frozen=True)
class FormatRow:
    """A storage format's bits a weight, and its errors in percent: of the matrices, and of what the layer computes."""

    format: str
    bits: float
    weights: float
    output: float


@dataclass(frozen=True)
class MemoryRow:
    """One phase of a run on a card, in GB (10^9 bytes). held: weights on the card when it ended, as text. beside: the most
    that was held beside these. planned: what the host makes room for, beside weights."""

    case: str
    phase: str
    held: str
    beside: float
    peak: float
    planned: float


@dataclass
class Results:
    """Everything of one call. notes: sentences that belong below the tables."""

    machine: dict[str, str]
    runs: list[RunRow] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    formats: list[FormatRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_host_memory: int = 0
    peak_device_memory: int | None = None

    @property
    def all_hold(self) -> bool:
        """Whether every bar that was measured holds."""
        return all(claim.verdict in (HOLDS, BY_FLOOR) for claim in self.claims if claim.verdict)
