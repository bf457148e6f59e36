"""Results as Markdown tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from .results import POINTS, Claim, Results
from .verdict import Bar, Estimate

COMPOSED = (
    "Runs at real width are composed: layers of each kind, with drawn weights and the published 32 + 2 + 2 + 2 of them, "
    "are timed in interleaved pairs, and a run is the sum of the medians times how often it does each. Prompts have "
    "200 tokens, references the picture's size, and branches are evaluated one after the other on both sides. "
    "Intervals are 95 %, by resampling the pairs. Peak memory is that of the bench, which holds one layer of each kind."
)


def to_json(results: Results) -> str:
    """Everything, for a program to read."""
    return json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n"


def to_markdown(results: Results) -> str:
    """The tables, with the machine above them."""
    parts = ["; ".join(f"{name} {value}" for name, value in results.machine.items()) + "."]
    if results.steps:
        parts.append(COMPOSED)
    parts += [_claims(results.claims), _floors(results), _runs(results), _steps(results), _formats(results), _memory(results)]
    parts += [f"- {note}" if "\n" not in note else note for note in results.notes]
    memory = f"Peak memory of the host {results.peak_host_memory / 1e9:.1f} GB"
    if results.peak_device_memory is not None:
        memory += f", of the card {results.peak_device_memory / 1e9:.1f} GB"
    parts.append(f"{memory}; the bench took {results.seconds / 60:.0f} minutes.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _claims(claims: Sequence[Claim]) -> str:
    rows = [(c.what, _figure(c.found, c.unit), _interval(c.found, c.unit), _bar(c.bar, c.unit), c.verdict) for c in claims]
    return _table("Figures beside their bars", ("", "measured", "95 % interval", "bar", "verdict"), rows)


def _floors(results: Results) -> str:
    rows = [
        (
            floor.case,
            f"{floor.flops / 1e12:,.0f}",
            f"{floor.rate / 1e9:,.0f}",
            f"{floor.seconds:,.0f}",
            _share(floor.share),
            _share(floor.native_share) if floor.native_share else "",
        )
        for floor in results.floors
    ]
    heads = ("50 steps", "TFLOP", "matrix products reach, GFLOP/s", "floor, s", "ours reaches", "native reaches")
    return _table("The floor: arithmetic over the measured rate of matrix products", heads, rows)


def _runs(results: Results) -> str:
    rows = [(r.case, r.path, r.steps, f"{r.evaluations:g}", _seconds(r.seconds), r.note) for r in results.runs]
    return _table("Runs", ("", "path", "steps", "evaluations", "seconds", ""), rows)


def _seconds(value: float) -> str:
    """With four digits, or as many as there are before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _steps(results: Results) -> str:
    rows = [
        (
            row.case,
            row.kind,
            row.tokens,
            f"{row.count:g}",
            f"{1000 * row.ours:,.1f}",
            "" if row.native is None else f"{1000 * row.native:,.1f}",
            "" if row.native is None else f"{row.native / row.ours:.3f}",
            row.pairs,
            "" if row.difference is None else f"{row.difference:.0e}",
        )
        for row in results.steps
    ]
    heads = ("", "step", "tokens", "in 50 steps", "ours, ms", "native, ms", "ratio", "pairs", "they differ by")
    return _table("Where the time goes", heads, rows)


def _formats(results: Results) -> str:
    rows = [(f.format, f"{f.bits:.2f}", f"{f.weights:.2f} %", f"{f.output:.2f} %") for f in results.formats]
    title = "Storage formats: one layer of the published width, drawn weights, against bf16"
    return _table(title, ("format", "bits a weight", "error of the matrices", "error of the output"), rows)


def _memory(results: Results) -> str:
    rows = [(r.case, r.phase, r.held, f"{r.beside:.2f}", f"{r.peak:.2f}", f"{r.planned:.2f}") for r in results.memory]
    heads = ("", "phase", "weights held, GB", "beside them, GB", "peak, GB", "planned beside weights, GB")
    return _table("What a card holds", heads, rows)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    rows = [[str(value) for value in row] for row in rows]
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(found: Estimate, unit: str) -> str:
    return f"{_digits(found.value, unit)}{unit}"


def _interval(found: Estimate, unit: str) -> str:
    return "" if found.low == found.high else f"{_digits(found.low, unit)} to {_digits(found.high, unit)}"


def _digits(value: float, unit: str) -> str:
    if unit == POINTS:
        return f"{value:+.1f}"
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3f}" if abs(value) < 3 else f"{value:.1f}"


def _bar(bar: Bar | None, unit: str) -> str:
    return "" if bar is None else f"{'≤' if bar.at_most else '≥'} {bar.limit:g}{unit}"


def _share(share: Estimate) -> str:
    return f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
