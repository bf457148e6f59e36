"""What the sampler's controls do to the nano model's pictures, as curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from ..guidance import Guidance
from .curves import COLOURS, Panel, floor_of, picture
from .questions import fits
from .score import Outcome, changed_places, draw_tasks, solve
from .world import cell_box, render

TEXT_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
IMAGE_SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
FEWER_STEPS = (4, 6, 8, 12, 20)
CLOSE = 6
"""Mean difference of a pixel's channels, in 255ths, up to which it counts as kept: less than an eye tells."""


@dataclass(frozen=True)
class Curve:
    """Shares 0..1 over a control's values."""

    title: str
    x_name: str
    x: tuple[float, ...]
    lines: dict[str, tuple[float, ...]]


def prompt_followed(outcome: Outcome) -> float:
    """Share of the wanted things that are in the picture as wanted."""
    if outcome.seen is None:
        return 0.0
    wanted = outcome.task.wanted.things
    return sum(any(fits(d, t) for t in outcome.seen.things) for d in wanted) / len(wanted)


def reference_kept(outcome: Outcome) -> float:
    """Share of the pixels outside what an edit changes that the picture repeats closely."""
    (reference,) = outcome.task.references
    source = render(reference, *outcome.picture.size).astype(np.float32)
    outside = np.ones(source.shape[:2], bool)
    for place in changed_places(reference, outcome.task.wanted):
        left, top, right, bottom = cell_box(place, *outcome.picture.size)
        outside[top:bottom, left:right] = False
    difference = np.abs(np.asarray(outcome.picture.convert("RGB"), np.float32) - source).mean(axis=2)
    return float((difference <= CLOSE)[outside].mean())


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def measure_controls(pipeline, seed: int, count: int) -> list[Curve]:
    """Runs `count` tasks at every setting of every control."""
    profile = pipeline.profile
    steps, text, image, guided = profile.steps, profile.text_guidance, profile.image_guidance, (0.0, profile.guidance_end)
    scenes, edits = draw_tasks("t2i_3", seed + 1, count), draw_tasks("edit", seed + 1, count)

    def right(tasks, guidance: Guidance, **settings) -> float:
        return _mean(o.right for o in solve(pipeline, tasks, seed, guidance=guidance, **settings))

    followed, exact = [], []
    for scale in TEXT_SCALES:
        outcomes = solve(pipeline, scenes, seed, guidance=Guidance(scale, 1.0, guided), steps=steps)
        followed.append(_mean(map(prompt_followed, outcomes)))
        exact.append(_mean(o.right for o in outcomes))
    curves = [Curve("Text guidance: three things", "text guidance", TEXT_SCALES, {"things as told": tuple(followed), "exact": tuple(exact)})]

    kept, done = [], []
    for scale in IMAGE_SCALES:
        outcomes = solve(pipeline, edits, seed, guidance=Guidance(text, scale, guided), steps=steps)
        # Where the ground is to change nothing is to be kept as it is.
        same = (o for o in outcomes if o.task.references[0].ground == o.task.wanted.ground)
        kept.append(_mean(map(reference_kept, same)))
        done.append(_mean(o.right for o in outcomes))
    lines = {"reference kept": tuple(kept), "edit exact": tuple(done)}
    curves.append(Curve("Image guidance: edits", "image guidance", IMAGE_SCALES, lines))

    ends = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    shares = tuple(right(scenes, Guidance(text, image, (0.0, end)), steps=steps) for end in ends)
    curves.append(Curve("Guidance range: 0 to ...", "end of the range", ends, {"exact": shares}))

    lines = {
        solver: tuple(right(scenes, Guidance(text, image, guided), steps=n, solver=solver) for n in FEWER_STEPS)
        for solver in ("euler", "dpmpp_2m")
    }
    curves.append(Curve("Solvers at few steps", "steps", FEWER_STEPS, lines))
    return curves


def report(curves: Sequence[Curve]) -> str:
    """The curves as text."""
    out = []
    for curve in curves:
        out.append(f"{curve.title}\n  {curve.x_name:<18}" + "".join(f"{x:>8g}" for x in curve.x))
        out += [f"  {name:<18}" + "".join(f"{100 * y:>7.1f}%" for y in ys) for name, ys in curve.lines.items()]
    return "\n".join(out)


def _panel(curve: Curve, left: int, top: int, width: int, height: int) -> list[str]:
    lowest = floor_of(y for ys in curve.lines.values() for y in ys)
    panel = Panel(left, top, width, height, (min(curve.x), max(curve.x)), lowest)
    parts = panel.frame(curve.title, curve.x_name, curve.x)
    for ys, colour in zip(curve.lines.values(), COLOURS):
        parts += panel.line(curve.x, ys, colour)
    return parts + panel.legend(curve.lines)


def draw_curves(curves: Sequence[Curve]) -> str:
    """The curves as an SVG picture, two by two."""
    width, height, margin_x, margin_y = 300, 170, 60, 70
    rows = (len(curves) + 1) // 2
    parts = []
    for i, curve in enumerate(curves):
        parts += _panel(curve, margin_x + (i % 2) * (width + margin_x), 40 + (i // 2) * (height + margin_y), width, height)
    return picture(2 * (width + margin_x) + 30, rows * (height + margin_y) + 20, parts)
