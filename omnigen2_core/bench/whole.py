"""Whole runs of a transformer with drawn weights, ours and others', step by step from noise.

On a card this is the full 4 B model; it was written without one at hand and has not been tried there. On a CPU it is a
model of the built-in one's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from ..acceleration.protocol import Run
from ..compiled import CompiledParts
from ..guidance import Guidance, combine
from ..precision import Attention
from ..sampler import sample
from ..schedule import timesteps
from ..transformer import OmniGen2Transformer
from . import machine, work
from .cases import Case
from .inputs import Inputs
from .results import Claim, Floor, Results, RunRow
from .timing import Effort, interleaved
from .verdict import HOLDS, Bar, either, estimate

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents [1, C, H, W], time [1]) -> velocity of one branch."""
Start = Callable[[Case, int], Mapping[str, Callable[[Tensor, Tensor, int], Tensor]]]
"""(case, steps) -> for each branch of a fresh run, (latents, time [1], step) -> velocity."""

GUIDANCE = Guidance()
FLOOR_BAR = Bar(0.8)
EAGER_BARS = {"t2i": Bar(1.12), "edit": Bar(1.12), "three": Bar(1.15)}
COMPILED_BARS = {"t2i": Bar(2.0), "edit": Bar(1.35)}
"""Ours compiled against native eager."""
NOT_BEHIND = Bar(1.0)
PRODUCT = "matrix product"
PROFILED = 12
"""Lines of the profiler's table."""


def start_ours(
    transformer: OmniGen2Transformer, inputs: Inputs, attention: Attention | None, compiled: CompiledParts | None = None
) -> Start:
    """Our transformer with what a run shares."""

    def start(case: Case, steps: int):
        state = Run(steps)

        def predict(branch: str, text: Tensor, references: list[Tensor], x: Tensor, time: Tensor, step: int) -> Tensor:
            place = state.evaluation(branch, step, text_key=branch == "cond")
            return transformer(
                x, time, text, None, [references],
                text_lengths=[text.shape[1]], attention=attention, compiled=compiled, state=place,
            )  # fmt: skip

        return {b: partial(predict, b, inputs.text(b), inputs.references(case, b)) for b in case.branches}

    return start


def start_others(velocity: Callable[[Case, str], Velocity]) -> Start:
    """A transformer whose evaluations know nothing of one another."""

    def start(case: Case, steps: int):
        found = {branch: velocity(case, branch) for branch in case.branches}
        return {branch: lambda x, time, step, of=of: of(x, time) for branch, of in found.items()}

    return start


@torch.inference_mode()
def whole_run(start: Start, case: Case, branches: Sequence[str], steps: int, inputs: Inputs) -> Tensor:
    """The latents of a run that asks for these branches at each step."""
    predict = start(case, steps)

    def denoise(x: Tensor, t: float, step: int) -> Tensor:
        time = torch.full((1,), t, device=inputs.device)
        return combine({branch: predict[branch](x.to(inputs.dtype), time, step).float() for branch in branches}, GUIDANCE)

    noise = inputs.latents(case).float()
    return sample(denoise, noise, timesteps(steps, *noise.shape[-2:]))


@dataclass(frozen=True)
class Contenders:
    """Paths by name ("ours", "native", "ours compiled", "native compiled", "reference"), and how long to measure."""

    starts: Mapping[str, Start]
    inputs: Inputs
    seconds: float
    note: str

    def measure(self, case: Case, steps: int, results: Results) -> None:
        """Adds the runs of a case, their ratios, and on a card the floor."""
        asked = {name: (start, case.branches) for name, start in self.starts.items()}
        if case.task == "t2i" and "native" in self.starts:
            asked["native, core's template"] = self.starts["native"], work.TEMPLATE
        actions = {
            name: partial(whole_run, start, case, branches, steps, self.inputs)
            for name, (start, branches) in asked.items()
        }
        latents = {name: action() for name, action in actions.items() if name in ("ours", "native")}
        device, memory = self.inputs.device, {}
        if device.type == "cuda":
            for name, action in actions.items():
                torch.cuda.reset_peak_memory_stats(device)
                action()
                memory[name] = machine.peak_device_memory(device)
            actions[PRODUCT] = machine.MatrixProduct().make(self.inputs.dtype, device)
        times = interleaved(actions, Effort(self.seconds), device)
        for name, (_, branches) in asked.items():
            note = self.note + (f", peak {memory[name] / 2**30:.1f} GB on the card" if name in memory else "")
            results.runs.append(RunRow(case.title, name, steps, steps * len(branches), median(times[name]), note))
        self._claims(case, steps, times, results)
        if len(latents) == 2 and case.references < 2:
            difference = (latents["ours"] - latents["native"]).abs().max().item()
            what = f"{case.title}, {steps} steps, {self.note}"
            results.notes.append(f"{what}: latents of ours and native differ by at most {difference:.1e}.")
        if device.type == "cuda":
            results.notes.append(f"{case.title}, where the time of ours goes:\n\n```\n{_profile(actions['ours'])}\n```")

    def _claims(self, case: Case, steps: int, times, results: Results) -> None:
        what, on_card = f"{case.title}, {steps} steps, {self.note}", self.inputs.device.type == "cuda"

        def ratio(slow: str, fast: str):
            return estimate([times], lambda medians: medians[slow] / medians[fast])

        share = None
        if on_card:
            flops = work.flops(work.ours(case, case.plain_record(steps), self.inputs.config), case, self.inputs.config)
            rate = machine.MatrixProduct().flops / median(times[PRODUCT])
            shares = {
                name: estimate([times], lambda m, name=name: flops * m[PRODUCT] / machine.MatrixProduct().flops / m[name])
                for name in ("ours", "native")
            }
            share = shares["ours"]
            results.floors.append(Floor(what, flops, rate, flops / rate, share, shares["native"]))
        bars = {("native", "ours"): EAGER_BARS[case.task], ("native compiled", "ours compiled"): NOT_BEHIND}
        bars["native", "ours compiled"] = COMPILED_BARS.get(case.task)
        for (slow, fast), bar in bars.items():
            if slow not in times or fast not in times:
                continue
            found, said = ratio(slow, fast), f"{what}: {fast} against {slow}"
            if not on_card or bar is None:
                results.claims.append(Claim(said, found))
                continue
            verdict = bar.verdict(found)
            if fast == "ours" and share is not None:
                verdict = either(verdict, FLOOR_BAR.verdict(share))
                if verdict == HOLDS != bar.verdict(found):
                    results.notes.append(f"{said}: holds because 80 % of the floor are reached.")
            results.claims.append(Claim(said, found, "×", bar, verdict))
        if "reference" in times:
            results.claims.append(Claim(f"{what}: ours against the authors' code", ratio("reference", "ours")))
        if "native, core's template" in times:
            results.claims.append(Claim(f"{what}: ours against core's template", ratio("native, core's template", "ours")))


def _profile(action: Callable[[], Tensor]) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as found:
        action()
    return found.key_averages().table(sort_by="cuda_time_total", row_limit=PROFILED, max_name_column_width=60)
