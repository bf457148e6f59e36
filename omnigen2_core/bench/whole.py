"""Whole runs of a transformer with drawn weights, ours, our plain path and others', step by step from noise.

On a card this is the full 4 B model; it was written without one at hand and has not been tried there. On a CPU it is a
model of the built-in one's size.
"""

from __future__ import annotations

import math
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
from .built_in import BF16_BAR, FP32_BAR, plain_velocity
from .cases import TEXT, Case
from .inputs import Inputs
from .results import Claim, Floor, Results, RunRow
from .timing import Effort, in_rounds, seconds_of
from .verdict import Bar, Estimate, estimate

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents [1, C, H, W], time [1]) -> velocity of one branch."""
Start = Callable[[Case, int], Mapping[str, Callable[[Tensor, Tensor, int], Tensor]]]
"""(case, steps) -> for each branch of a fresh run, (latents, time [1], step) -> velocity."""

GUIDANCE = Guidance()
EAGER_BARS = {"t2i": Bar(1.12), "edit": Bar(1.12), "three": Bar(1.15)}
COMPILED_BARS = {"t2i": Bar(2.0), "edit": Bar(1.35)}
"""Ours compiled against native eager."""
NOT_BEHIND = Bar(1.0)
PRODUCT = "matrix product"
PLAIN_PATH = "plain path"
EXACT_PATHS = ("ours", "ours compiled")
"""Those whose latents have to be the plain path's, within the bars of the built-in model."""
LEAST_ROUNDS = 3
"""A whole run of the full model takes long, so that more would not fit into a session on a lent card."""
PROFILED = 12
"""Lines of the profiler's table."""


def start_ours(
    transformer: OmniGen2Transformer, inputs: Inputs, attention: Attention | None, compiled: CompiledParts | None = None
) -> Start:
    """Our transformer with what a run shares."""

    return lambda case, steps: our_velocities(transformer, inputs, case, Run(steps), attention, compiled)


def our_velocities(
    transformer: OmniGen2Transformer,
    inputs: Inputs,
    case: Case,
    run: Run,
    attention: Attention | None,
    compiled: CompiledParts | None = None,
) -> Mapping[str, Callable[[Tensor, Tensor, int], Tensor]]:
    """For each branch of `run`, (latents, time [1], step) -> velocity."""

    def predict(branch: str, text: Tensor, references: list[Tensor], x: Tensor, time: Tensor, step: int) -> Tensor:
        place = run.evaluation(branch, step, text_key=branch == "cond")
        return transformer(
            x, time, text, None, [references],
            text_lengths=[text.shape[1]], attention=attention, compiled=compiled, state=place,
        )  # fmt: skip

    return {b: partial(predict, b, inputs.text(b), inputs.references(case, b)) for b in case.branches}


def start_plainly(transformer: OmniGen2Transformer, inputs: Inputs) -> Start:
    """Our transformer with nothing shared and nothing fused."""

    def velocity(case: Case, branch: str) -> Velocity:
        text, references = inputs.text(branch), inputs.references(case, branch)
        mask = torch.ones(1, TEXT, dtype=torch.long, device=inputs.device)
        given = [references] if references else None
        return lambda latents, time: plain_velocity(transformer, latents, time, text, mask, given)

    return start_others(velocity)


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
    """Paths by name ("plain path", "ours", "native", "ours compiled", "native compiled", "reference"), and how long to
    measure."""

    starts: Mapping[str, Start]
    inputs: Inputs
    seconds: float
    note: str

    def measure(self, case: Case, steps: int, results: Results) -> None:
        """Adds the runs of a case, their ratios, how far they are from the plain path, and on a card the floor."""
        asked = {name: (start, case.branches) for name, start in self.starts.items()}
        if case.task == "t2i" and "native" in self.starts:
            asked["native, core's template"] = self.starts["native"], work.TEMPLATE
        actions = {
            name: partial(whole_run, start, case, branches, steps, self.inputs)
            for name, (start, branches) in asked.items()
        }
        device, memory, latents, first = self.inputs.device, {}, {}, 0.0
        for name, action in actions.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            first += seconds_of(lambda: latents.update({name: action()}), device)
            if device.type == "cuda":
                memory[name] = machine.peak_device_memory(device)
        if device.type == "cuda":
            actions[PRODUCT] = machine.MatrixProduct().make(self.inputs.dtype, device)
        times = in_rounds(actions, Effort(self.seconds, least=LEAST_ROUNDS).rounds(first), device)
        for name, (_, branches) in asked.items():
            note = self.note + (f", peak {memory[name] / 1e9:.1f} GB on the card" if name in memory else "")
            results.runs.append(RunRow(case.title, name, steps, steps * len(branches), median(times[name]), note))
        self._claims(case, steps, times, results)
        self._errors(case, steps, latents, results)
        if device.type == "cuda":
            results.notes.append(f"{case.title}, where the time of ours goes:\n\n```\n{_profile(actions['ours'])}\n```")

    def _errors(self, case: Case, steps: int, latents: Mapping[str, Tensor], results: Results) -> None:
        """How far each path's latents are from the plain path's; ours, compiled too, beside their bar."""
        what, plain = f"{case.title}, {steps} steps, {self.note}", latents[PLAIN_PATH]
        for name, own in latents.items():
            said = f"{what}: {name} against the plain path"
            if name in EXACT_PATHS:
                largest, ratio = Estimate.exact((own - plain).abs().max().item()), Estimate.exact(psnr(own, plain))
                bars = (FP32_BAR, None) if self.inputs.dtype is torch.float32 else (None, BF16_BAR)
                results.claims.append(Claim.judged(f"{said}, largest error of the latents", largest, bars[0], ""))
                results.claims.append(Claim.judged(f"{said}, PSNR of the latents", ratio, bars[1], " dB"))
            # Native refines several references together, and its template evaluates another branch.
            elif name not in (PLAIN_PATH, "native, core's template") and (name.startswith("ours") or case.references < 2):
                results.notes.append(f"{said}: {errors(own, plain)}.")

    def _claims(self, case: Case, steps: int, times, results: Results) -> None:
        what, on_card = f"{case.title}, {steps} steps, {self.note}", self.inputs.device.type == "cuda"

        def ratio(slow: str, fast: str):
            return estimate([times], lambda medians: medians[slow] / medians[fast])

        if on_card:
            flops = work.flops(work.ours(case, case.plain_record(steps), self.inputs.config), case, self.inputs.config)
            rate = machine.MatrixProduct().flops / median(times[PRODUCT])
            shares = {
                name: estimate([times], lambda m, name=name: flops * m[PRODUCT] / machine.MatrixProduct().flops / m[name])
                for name in ("ours", "native")
            }
            results.floors.append(Floor(what, flops, rate, flops / rate, shares["ours"], shares["native"]))
        bars = {("native", "ours"): EAGER_BARS[case.task], ("native compiled", "ours compiled"): NOT_BEHIND}
        bars["native", "ours compiled"] = COMPILED_BARS.get(case.task)
        for (slow, fast), bar in bars.items():
            if slow not in times or fast not in times:
                continue
            found, said = ratio(slow, fast), f"{what}: {fast} against {slow}"
            results.claims.append(Claim.judged(said, found, bar if on_card else None))
        results.claims.append(Claim(f"{what}: ours against the plain path", ratio(PLAIN_PATH, "ours")))
        if "reference" in times:
            results.claims.append(Claim(f"{what}: ours against the authors' code", ratio("reference", "ours")))
        if "native, core's template" in times:
            results.claims.append(Claim(f"{what}: ours against core's template", ratio("native, core's template", "ours")))


def psnr(found: Tensor, expected: Tensor) -> float:
    """Peak signal to noise of latents in dB, the peak being the range of what is expected."""
    mean_square = (found - expected).float().square().mean().item()
    return 10 * math.log10((expected.max() - expected.min()).item() ** 2 / max(mean_square, 1e-20))


def errors(found: Tensor, expected: Tensor) -> str:
    """Both errors of latents in words."""
    return f"largest error {(found - expected).abs().max().item():.1e}, PSNR {psnr(found, expected):.0f} dB"


def _profile(action: Callable[[], Tensor]) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as found:
        action()
    return found.key_averages().table(sort_by="cuda_time_total", row_limit=PROFILED, max_name_column_width=60)
