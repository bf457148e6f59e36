"""What the results of a search amount to: speed against score, as numbers and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ..acceleration.pattern import record_of
from ..acceleration.protocol import Work
from ..bench.cases import Case
from ..bench.work import flops, ours
from ..guidance import Guidance
from .candidates import PLAIN, PLAIN_STEPS, name_of, parse
from .results import Batch, Results
from .score import figure, paired

Figure = Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """A candidate on one kind of problem.

    Attributes:
        right: Rate of right pictures, as `score.figure` gives it.
        change: By how much the rate differs from the plain path's on the same problems, as `score.paired` gives it;
            None where those are not there.
        speed: How many times less its arithmetic is than the plain path's, at the published width and 1024x1024.
        steps: What of that its fewer steps bring; the rest is what is saved within a step.
        psnr: Median of the pictures against the plain path's, in dB; None where there is none.
        seconds: Median time to draw a picture.
    """

    right: Figure
    change: Figure | None
    speed: float
    steps: float
    psnr: float | None
    seconds: float


def cell(results: Results, candidate: str, world: str, kind: str) -> Cell | None:
    """What is known of a candidate on a kind of problem, None if nothing."""
    batches = results.batches(candidate, world, kind)
    if not batches:
        return None
    header, case = results.header, Case(batches[0].references, 1024, 1024)
    guidance = Guidance(header.text_guidance, header.image_guidance, (0.0, header.guidance_end))
    plain = _arithmetic(case, case.plain_record(PLAIN_STEPS, guidance))
    fewer = _arithmetic(case, case.plain_record(parse(candidate).steps, guidance))
    own = [_arithmetic(case, record_of(batch.pattern)) for batch in batches]
    compared = [db for batch in batches for db in batch.psnr]
    return Cell(
        right=figure(_verdicts(batches)),
        change=_change(results, candidate, world, [kind]),
        speed=plain * len(own) / sum(own),
        steps=plain / fewer,
        psnr=median(compared) if compared else None,
        seconds=median(batch.seconds / len(batch.right) for batch in batches),
    )


def overall(results: Results, candidate: str, world: str) -> tuple[Figure, Figure | None]:
    """Rate of right pictures over all kinds of a world, and its change from the plain path."""
    kinds = list(results.kinds(world))
    verdicts = [v for kind in kinds for v in _verdicts(results.batches(candidate, world, kind))]
    return figure(verdicts), _change(results, candidate, world, kinds)


def _arithmetic(case: Case, record: Iterable[Work]) -> float:
    return flops(ours(case, record), case)


def _verdicts(batches: Sequence[Batch]) -> list[bool]:
    return [letter == "1" for batch in batches for letter in batch.right]


def _change(results: Results, candidate: str, world: str, kinds: Sequence[str]) -> Figure | None:
    after, before = [], []
    for kind in kinds:
        plain = {batch.start: batch for batch in results.batches(str(PLAIN), world, kind)}
        for batch in results.batches(candidate, world, kind):
            if batch.start in plain:
                after += _verdicts([batch])
                before += _verdicts([plain[batch.start]])
    return paired(after, before) if after else None


# As text


def table(results: Results, world: str) -> str:
    """All candidates of a world, a line each."""
    kinds = results.kinds(world)
    lines = ["".join(f"{kind:>32}" for kind in kinds) + "   settings"]
    lines.append("".join(f"{'speed':>8}{'right':>8}{'change':>8}{'dB':>8}" for _ in kinds))
    for candidate in results.candidates(world):
        cells = [cell(results, candidate, world, kind) for kind in kinds]
        lines.append("".join(map(_columns, cells)) + "   " + name_of(parse(candidate)))
    return "\n".join(lines)


def _columns(one: Cell | None) -> str:
    if one is None:
        return " " * 32
    change = f"{100 * one.change['rate']:+.1f}" if one.change else ""
    psnr = "" if one.psnr is None else f"{one.psnr:.1f}"
    return f"{one.speed:>7.2f}x{100 * one.right['rate']:>7.1f}%{change:>8}{psnr:>8}"


HEADINGS = (
    "Settings", "Problems", "n", "Speed", "of it by fewer steps", "Right", "95 % interval", "Change in points", "95 % interval",
    "dB to plain", "s a picture",
)  # fmt: skip


def markdown(results: Results, world: str, candidates: Sequence[str] | None = None) -> str:
    """A table with everything that is known, for some candidates of a world or all."""
    rows = [HEADINGS, ["---"] * len(HEADINGS)]
    for candidate in candidates or results.candidates(world):
        for kind in results.kinds(world):
            one = cell(results, candidate, world, kind)
            if one:
                rows.append([name_of(parse(candidate)), kind, *_numbers(one)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _numbers(one: Cell) -> list[str]:
    low, high = 100 * one.right["low"], 100 * one.right["high"]
    change = ["", ""]
    if one.change:
        change = [f"{100 * one.change['rate']:+.1f}", f"{100 * one.change['low']:+.1f} to {100 * one.change['high']:+.1f}"]
    return [
        str(one.right["n"]), f"{one.speed:.2f}x", f"{one.steps:.2f}x", f"{100 * one.right['rate']:.1f} %", f"{low:.1f} to {high:.1f}", *change,
        "" if one.psnr is None else f"{one.psnr:.1f}", f"{one.seconds:.2f}",
    ]  # fmt: skip
