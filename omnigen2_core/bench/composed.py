"""One case at real width: its steps timed in interleaved pairs, and runs composed of their medians."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from ..acceleration.presets import PRESETS
from ..acceleration.protocol import Work
from ..transformer import OmniGen2Config
from . import work
from .cases import STEPS, Case
from .machine import MatrixProduct
from .patterns import PLAIN, Patterns
from .results import Claim, Floor, Results, RunRow, StepRow
from .steps import Steps
from .timing import Effort, interleaved
from .verdict import Bar, Estimate, estimate, or_floor
from .work import Plan, Step

OURS, NATIVE, RATE = "ours", "native", "rate"
Key = tuple[str, Step | int]

EQUAL_BARS = {"t2i": Bar(1.05), "edit": Bar(1.08), "three": Bar(1.08)}
"""Against native with as many evaluations."""
TEMPLATE_BAR = Bar(1.55)
FLOOR_BAR = Bar(0.9)
SPEED_BARS = {
    ("balanced", "t2i"): Bar(3.5),
    ("balanced", "edit"): Bar(4.5),
    ("turbo", "t2i"): Bar(6.0),
    ("turbo", "edit"): Bar(8.0),
    ("turbo", "three"): Bar(10.0),
}
"""Against our own plain path of 50 steps."""
LONG = 50
"""Steps of the runs that bars are about."""


@dataclass(frozen=True)
class Bench:
    """How cases are measured. makers: of steps, by path; without `native` only ours are. seconds: to spend on a case."""

    makers: Mapping[str, Steps]
    patterns: Patterns
    device: torch.device
    dtype: torch.dtype
    seconds: float
    config: OmniGen2Config = OmniGen2Config()
    product: MatrixProduct = MatrixProduct()

    def measure(self, case: Case, results: Results) -> None:
        """Time the case's steps and add what follows to `results`."""
        plans = self._plans(case)
        needed = {(side, step) for (side, *_), plan in plans.items() for step in plan}
        groups, differences, families = [], {}, _grouped(needed)
        main = 0.7 * self.seconds / sum(map(_has_layers, families))
        for keys in families:
            # Nearly all of a run is its main layers.
            effort = Effort(main) if _has_layers(keys) else Effort(0.05 * self.seconds, least=3)
            group, difference = self._time(case, keys, effort)
            groups.append(group)
            differences |= difference
        self._report(case, plans, groups, differences, results)

    def _plans(self, case: Case) -> dict[tuple, Plan]:
        """Runs by (path, name, steps)."""
        plans: dict[tuple, Plan] = {}
        for steps in STEPS:
            plans[OURS, "exact", steps] = work.ours(case, case.plain_record(steps), self.config)
            if NATIVE in self.makers:
                plans[NATIVE, "equal", steps] = work.native(case, case.branches, steps, self.config)
                if case.task == "t2i":
                    plans[NATIVE, "template", steps] = work.native(case, work.TEMPLATE, steps, self.config)
        for name, preset in PRESETS.items():
            plans[OURS, "pattern", name] = _mean(self._pattern(case, record) for record in self.patterns.records[name, case.task])
            # As many steps, everything computed.
            plain = _first_steps(self.patterns.records["exact", case.task][0], preset.steps)
            plans[OURS, "only steps", name] = self._pattern(case, plain)
        return plans

    def _pattern(self, case: Case, record: list[Work]) -> Plan:
        return work.ours(case, record, self.config)

    def _time(self, case: Case, keys: list[Key], effort: Effort) -> tuple[dict[Key, list[float]], dict[Step, float]]:
        """Seconds by path and step of steps that are measured together, and how far pairs that do the same differ."""
        actions = {(side, step): self.makers[side].make(case, step) for side, step in keys}
        differences = {
            step: (actions[OURS, step]() - actions[NATIVE, step]()).abs().max().item()
            for side, step in keys
            if side == OURS and (NATIVE, step) in actions and step.kind != "ends"
        }
        if _has_layers(keys):
            actions[RATE, keys[0][1].keys] = self.product.make(self.dtype, self.device)
        return interleaved(actions, effort, self.device), differences

    def _report(self, case: Case, plans, groups, differences, results: Results) -> None:
        medians = {key: median(seconds) for group in groups for key, seconds in group.items()}
        counts = {key: len(seconds) for group in groups for key, seconds in group.items()}

        def seconds(plan_key: tuple) -> Callable[[Mapping[Key, float]], float]:
            side, plan = plan_key[0], plans[plan_key]
            return lambda times: work.compose(plan, {step: times[side, step] for step in plan})

        def ratio(slow: tuple, fast: tuple) -> Estimate:
            return estimate(groups, lambda times: seconds(slow)(times) / seconds(fast)(times))

        for key, plan in plans.items():
            if key[1] not in ("pattern", "only steps"):
                names = {"exact": "ours", "equal": "native", "template": "native, core's template"}
                results.runs.append(RunRow(case.title, names[key[1]], key[2], work.evaluations(plan), seconds(key)(medians)))
        floor = self._floor(case, plans, groups, seconds)
        results.floors.append(floor)
        for steps in STEPS if NATIVE in self.makers else ():
            self._exact_claims(case, steps, ratio, floor, results)
        self._preset_claims(case, plans, seconds(("ours", "pattern", "exact")), medians, ratio, results)
        for step, count in plans[OURS, "exact", LONG].items():
            tokens = f"{step.batch} × {step.queries}" if step.batch > 1 else f"{step.queries}"
            if step.keys != step.queries:
                tokens += f" of {step.keys}"
            results.steps.append(
                StepRow(case.title, step.kind, tokens, count, medians[OURS, step], medians.get((NATIVE, step)),
                        counts[OURS, step], differences.get(step))
            )  # fmt: skip

    def _exact_claims(self, case: Case, steps: int, ratio, floor: Floor, results: Results) -> None:
        ours, equal = (OURS, "exact", steps), (NATIVE, "equal", steps)
        found, bar = ratio(equal, ours), EQUAL_BARS[case.task]
        verdict = or_floor(bar.verdict(found), FLOOR_BAR.verdict(floor.share)) if self._has_bars else ""
        what = f"{case.title}, {steps} steps: ours against native, as many evaluations"
        results.claims.append(Claim(what, found, "×", bar if verdict else None, verdict))
        if case.task == "t2i":
            found = ratio((NATIVE, "template", steps), ours)
            what = f"{case.title}, {steps} steps: ours against core's template"
            results.claims.append(Claim.judged(what, found, TEMPLATE_BAR) if self._has_bars else Claim(what, found))

    @property
    def _has_bars(self) -> bool:
        """The bars of composed figures are for CPUs."""
        return self.device.type == "cpu"

    def _preset_claims(self, case: Case, plans, exact_seconds, medians, ratio, results: Results) -> None:
        slow = (OURS, "pattern", "exact")
        for name, preset in PRESETS.items():
            if preset == PLAIN:
                continue
            fast, fewer = (OURS, "pattern", name), (OURS, "only steps", name)
            total, bar = ratio(slow, fast), SPEED_BARS.get((name, case.task))
            what = f"{case.title}: {name} against our plain 50 steps"
            results.claims.append(Claim.judged(what, total, bar))
            results.claims.append(Claim(f"… of which {preset.steps} steps instead of 50", ratio(slow, fewer)))
            results.claims.append(Claim("… of which caching", ratio(fewer, fast)))
            seconds = work.compose(plans[fast], {step: medians[OURS, step] for step in plans[fast]})
            results.runs.append(RunRow(case.title, name, preset.steps, work.evaluations(plans[fast]), seconds, "recorded pattern"))
        seconds = work.compose(plans[slow], {step: medians[OURS, step] for step in plans[slow]})
        note = "recorded pattern, which the presets are compared with"
        results.runs.append(RunRow(case.title, "plain", LONG, work.evaluations(plans[slow]), seconds, note))

    def _floor(self, case: Case, plans, groups, seconds) -> Floor:
        plan = plans[OURS, "exact", LONG]
        flops = work.flops(plan, case, self.config)
        rates = [key for group in groups for key in group if key[0] == RATE]

        def floor(times: Mapping[Key, float]) -> float:
            return flops * sum(times[key] for key in rates) / len(rates) / self.product.flops

        def share_of(key: tuple) -> Estimate:
            return estimate(groups, lambda times: floor(times) / seconds(key)(times))

        medians = {key: median(values) for group in groups for key, values in group.items()}
        native = share_of((NATIVE, "equal", LONG)) if NATIVE in self.makers else None
        at = floor(medians)
        return Floor(case.title, flops, flops / at, at, share_of((OURS, "exact", LONG)), native)


def _has_layers(keys: list[Key]) -> bool:
    return any(step.kind == "layer" for _, step in keys)


def _grouped(keys: set[Key]) -> list[list[Key]]:
    """Steps that are timed in the same rounds: main layers of one sequence, or one kind at one size of both paths."""
    families: dict[tuple, list[Key]] = {}
    for side, step in sorted(keys):
        if step.kind in ("layer", "last", "image"):
            family = ("layer", step.keys)
        else:
            family = (step.kind, step.batch * step.queries, step.keys if step.kind == "ends" else 0)
        families.setdefault(family, []).append((side, step))
    return list(families.values())


def _mean(plans) -> Plan:
    """The mean of several runs."""
    plans = list(plans)
    total: Plan = Plan()
    for plan in plans:
        total.update(plan)
    return Plan({step: count / len(plans) for step, count in total.items()})


def _first_steps(record: list[Work], steps: int) -> list[Work]:
    """A plain record of fewer steps, guided in the same share of the run."""
    long = 1 + max(item.step for item in record)
    branches = [[item.branch for item in record if item.step == step * long // steps] for step in range(steps)]
    return [Work(step, branch, "full", context=True) for step, some in enumerate(branches) for branch in some]
