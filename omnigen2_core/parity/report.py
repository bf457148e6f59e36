"""What a comparison says: one row for each case."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Iterable, Sequence

import torch
from torch import Tensor

RELATIVE_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative RMS error in other dtypes than fp32."""


@dataclass(frozen=True)
class Row:
    """Outcome of one case.

    Attributes:
        part, case: Where it comes from.
        ok: Whether it holds; None where it was not replayed.
        error: Largest absolute error; for exact cases, the number of entries that differ.
        relative: Relative RMS error, where that is what is judged.
        tolerance: What `error` (or `relative`, where given) may be at most.
        note: What else there is to say.
    """

    part: str
    case: str
    ok: bool | None
    error: float | None = None
    tolerance: float | None = None
    relative: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Ruler:
    """Compares results with golden tensors: by absolute error in fp32, by relative RMS in a smaller dtype."""

    part: str
    dtype: torch.dtype = torch.float32

    def close(self, case: str, pairs: Iterable[tuple[Tensor, Tensor]], tolerance: float, *, note: str = "") -> Row:
        """A row for one or more (result, expected) pairs; `tolerance` is the absolute one."""
        got, want = [], []
        for result, expected in pairs:
            if result.shape != expected.shape:
                note = f"shape {list(result.shape)} where {list(expected.shape)} is expected"
                return Row(self.part, case, False, None, tolerance, note=note)
            got.append(result)
            want.append(expected)
        error = (_flat(got) - _flat(want)).abs().max().item()
        if self.dtype == torch.float32:
            return Row(self.part, case, error <= tolerance, error, tolerance, note=note)
        relative = relative_error(list(zip(got, want)))
        limit = RELATIVE_TOLERANCE[self.dtype]
        return Row(self.part, case, relative <= limit, error, limit, relative, note)

    def exact(self, case: str, pairs: Iterable[tuple[object, object]], *, note: str = "") -> Row:
        """A row for values that must be equal, whatever the dtype; counts those that are not."""
        different = [(got, want) for got, want in pairs if got != want]
        if different and not note:
            got, want = different[0]
            note = f"{_short(got)} where {_short(want)} is expected"
        return Row(self.part, case, not different, float(len(different)), 0.0, note=note)

    def skipped(self, case: str, reason: object) -> Row:
        """A row for a case that was not replayed."""
        return Row(self.part, case, None, note=str(reason))

    def failed(self, case: str, reason: object) -> Row:
        """A row for a case that could not be brought to a result."""
        return Row(self.part, case, False, note=str(reason))


def relative_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Relative RMS error of results over (result, expected) pairs together."""
    got, want = (_flat(tensors) for tensors in zip(*pairs))
    return ((got - want).norm() / want.norm()).item()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])


def _short(value: object, limit: int = 80) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def all_hold(rows: Sequence[Row]) -> bool:
    """Whether something was replayed and all of it holds."""
    judged = [row.ok for row in rows if row.ok is not None]
    return bool(judged) and all(judged)


def header() -> str:
    """The line above the rows."""
    return f"{'part':<12}{'case':<40}{'max abs error':>14}{'rel. RMS':>11}{'tolerance':>11}  result"


def line(row: Row) -> str:
    """One row as text."""
    result = {True: "holds", False: "DOES NOT HOLD", None: "not replayed"}[row.ok]
    note = f": {row.note}" if row.note else ""
    numbers = f"{_number(row.error):>14}{_number(row.relative):>11}{_number(row.tolerance):>11}"
    return f"{row.part:<12}{row.case:<40}{numbers}  {result}{note}"


def summary(rows: Sequence[Row]) -> str:
    """How many cases hold."""
    held, failed, skipped = (sum(row.ok is outcome for row in rows) for outcome in (True, False, None))
    return f"{held} hold, {failed} do not, {skipped} not replayed"


def print_rows(rows: Iterable[Row]) -> int:
    """Print every row as it comes. The status: 0 if all hold, 1 if one does not, 2 if nothing could be replayed."""
    sys.stdout.write(f"{header()}\n")
    printed = []
    for row in rows:
        printed.append(row)
        sys.stdout.write(f"{line(row)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{summary(printed)}\n")
    if all(row.ok is None for row in printed):
        return 2
    return 0 if all_hold(printed) else 1


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}" if value else "0"
