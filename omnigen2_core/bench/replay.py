"""The presets on a transformer with drawn weights, by the pattern that they were recorded with on the built-in model.

Drawn weights make no honest decisions. The presets decide by the number of the step alone, so they do on these what they
did there; that they did is looked at after each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from ..acceleration.presets import PRESETS, Preset
from ..acceleration.protocol import Work
from ..errors import OmniGen2Error
from ..guidance import combine
from ..precision import Attention
from ..sampler import sample
from ..schedule import timesteps
from ..transformer import OmniGen2Transformer
from .cases import Case
from .composed import SPEED_BARS
from .inputs import Inputs
from .patterns import PLAIN, Patterns
from .results import Claim, Results, RunRow
from .timing import Effort, in_rounds, seconds_of
from .verdict import estimate
from .whole import GUIDANCE, LEAST_ROUNDS, errors, our_velocities

NAMES = tuple(name for name, preset in PRESETS.items() if preset != PLAIN)
"""Those that save something."""
BASE = next(name for name, preset in PRESETS.items() if preset == PLAIN)


@torch.inference_mode()
def replayed(
    transformer: OmniGen2Transformer,
    inputs: Inputs,
    attention: Attention | None,
    case: Case,
    preset: Preset,
    record: Sequence[Work],
) -> Tensor:
    """The latents [1, C, H, W] of a run that asks for the branches of `record` and computes as much of them.

    record: of a run with this preset, of whatever number of layers. Raises OmniGen2Error where the preset does something
    else here.
    """
    wanted: list[list[str]] = [[] for _ in range(preset.steps)]
    for work in record:
        wanted[work.step].append(work.branch)
    run = preset.acceleration.run(preset.steps)
    predict = our_velocities(transformer, inputs, case, run, attention)

    def denoise(x: Tensor, t: float, step: int) -> Tensor:
        time = torch.full((1,), t, device=inputs.device)
        # The record has first what was evaluated; the guidance asks in the order of the branches.
        asked = [branch for branch in case.branches if branch in wanted[step]]

        def evaluate(some: Sequence[str]) -> Mapping[str, Tensor]:
            return {branch: predict[branch](x.to(inputs.dtype), time, step).float() for branch in some}

        return combine(run.predict(asked, step, evaluate), GUIDANCE)

    noise = inputs.latents(case).float()
    latents = sample(denoise, noise, timesteps(preset.steps, *noise.shape[-2:]), solver=preset.solver)
    if _kinds(run.record) != _kinds(record):
        raise OmniGen2Error(
            f"On {case.title} the preset of {preset.steps} steps computes something else than was recorded, so its time "
            "would be that of another run; record the patterns anew with python dev.py presets."
        )
    return latents


@dataclass(frozen=True)
class Presets:
    """What is needed to time the presets. seconds: to spend on a case. note: of the model, for tables."""

    transformer: OmniGen2Transformer
    inputs: Inputs
    attention: Attention | None
    patterns: Patterns
    seconds: float
    note: str

    def measure(self, case: Case, results: Results) -> None:
        """Adds the runs of a case, how many times faster than everything computed they are, and how far from it."""
        actions, device = {}, self.inputs.device
        for name in (BASE, *NAMES):
            record = self.patterns.records[name, case.task][0]
            actions[name] = partial(replayed, self.transformer, self.inputs, self.attention, case, PRESETS[name], record)
        found: dict[str, Tensor] = {}
        first = sum(seconds_of(lambda name=name: found.update({name: actions[name]()}), device) for name in actions)
        times = in_rounds(actions, Effort(self.seconds, least=LEAST_ROUNDS).rounds(first), device)
        for name, seconds in times.items():
            computed = sum(work.kind != "omitted" for work in self.patterns.records[name, case.task][0])
            note = f"{self.note}, recorded pattern"
            results.runs.append(RunRow(case.title, name, PRESETS[name].steps, computed, median(seconds), note))
        for name in NAMES:
            ratio = estimate([times], lambda medians, name=name: medians[BASE] / medians[name])
            what = f"{case.title}, {self.note}: {name} against our plain {PLAIN.steps} steps"
            bar = SPEED_BARS.get((name, case.task)) if device.type == "cuda" else None
            results.claims.append(Claim.judged(what, ratio, bar))
            results.notes.append(f"{what}: {errors(found[name], found[BASE])}. Of drawn weights that says nothing of trained ones.")


def _kinds(record: Sequence[Work]) -> list[Work]:
    """A record without how many layers there are."""
    return [work._replace(layers=0) for work in record]
