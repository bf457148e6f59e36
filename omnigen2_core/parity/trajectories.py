"""Whole sampling runs: every step's latents, and which steps each branch computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterator, Protocol

import torch
from torch import Tensor

from ..guidance import Guidance
from ..schedule import custom_timesteps, timesteps
from .dit import numbered
from .folder import GoldenFolder, NotReplayed, named
from .report import Row, Ruler

STEP_TOLERANCE = 1e-4
TIME_TOLERANCE = 1e-6
TRACE_TOLERANCE = 1e-4
_SOLVERS = {"euler": "euler", "dpmsolver++": "dpmpp_2m"}


@dataclass(frozen=True)
class Trajectory:
    """One sampling run and what came of it.

    Attributes:
        noise: [B, C, H, W]. times: [N + 1]. solver: A name of `solvers.SOLVERS`.
        text, negative: [B, L, D] with masks [B, L].
        references: For each sample its list of [C, h, w].
        teacache: Threshold, or None. taylorseer: Whether it runs.
        weight_scale: Factors by which the named weights are multiplied first.
        latents: [N, B, C, H, W] after each step.
        branches: For each branch the steps that called it and those that ran the main layers.
        trace: For each branch TeaCache's [step, change, accumulated, computed].
    """

    name: str
    noise: Tensor
    times: Tensor
    expected_times: Tensor
    solver: str
    guidance: Guidance
    text: Tensor
    text_mask: Tensor
    negative: Tensor
    negative_mask: Tensor
    references: list[list[Tensor]]
    teacache: float | None
    taylorseer: bool
    weight_scale: dict[str, float]
    latents: Tensor
    final: Tensor
    branches: dict[str, dict[str, list[int]]]
    trace: dict[str, list[list[float | None]]]

    @property
    def steps(self) -> int:
        return len(self.times) - 1


@dataclass
class Trace:
    """What a replay recorded.

    Attributes:
        latents: After each step, [B, C, H, W].
        called: Step indices at which each branch was evaluated.
        computed: Those at which it ran the main layers; None where the model cannot tell.
        changes: For each branch TeaCache's (step, relative change of its signal), where it can tell.
    """

    latents: list[Tensor] = field(default_factory=list)
    called: dict[str, list[int]] = field(default_factory=dict)
    computed: dict[str, list[int]] | None = None
    changes: dict[str, list[tuple[int, float]]] | None = None


class SamplingModel(Protocol):
    """What replays sampling runs: our loop over our transformer, or the host's."""

    def load(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Take the weights that the following cases use."""

    def trajectory(self, case: Trajectory) -> Trace:
        """Run the case. Raises NotReplayed for one that it has no way to run."""


def read_trajectories(folder: GoldenFolder) -> Iterator[Trajectory]:
    """The cases that `sampling.json` names."""
    tensors = folder.tensors("sampling")
    for name, entry in folder.json("sampling").items():
        values = named(tensors, name)
        noise, text, negative = values["noise"], values["text"], values["neg"]
        latents = values["latents_per_step"]
        if latents.ndim == 4:
            latents = latents[:, None]
        if "custom_timesteps" in entry:
            times = custom_timesteps(entry["custom_timesteps"])
        else:
            shift = "auto" if entry.get("dynamic_time_shift", True) else None
            times = timesteps(entry["steps"], noise.shape[-2], noise.shape[-1], shift=shift)
        yield Trajectory(
            name=name,
            noise=noise,
            times=times,
            expected_times=values["timesteps"],
            solver=_SOLVERS.get(entry["scheduler"], entry["scheduler"]),
            guidance=Guidance(
                entry["text_guidance_scale"], entry["image_guidance_scale"], tuple(entry["cfg_range"])
            ),
            text=text,
            text_mask=values.get("text_mask", torch.ones(text.shape[:2], dtype=torch.int64)),
            negative=negative,
            negative_mask=values.get("neg_mask", torch.ones(negative.shape[:2], dtype=torch.int64)),
            references=[numbered(values, f"ref.{i}." if "batch" in entry else "ref.") for i in range(len(noise))],
            teacache=entry.get("teacache"),
            taylorseer=entry.get("taylorseer", False),
            weight_scale=entry.get("weight_scale", {}),
            latents=latents,
            final=values["final"],
            branches=entry["branches"],
            trace=entry.get("teacache_trace", {}),
        )


def replay_trajectories(
    folder: GoldenFolder, model: SamplingModel, dtype: torch.dtype, tolerance: float = STEP_TOLERANCE
) -> Iterator[Row]:
    """Every run through `model`, step by step."""
    ruler = Ruler("sampling", dtype)
    config, weights = folder.json("dit_config"), folder.tensors("dit_weights")
    loaded: dict[str, float] | None = None
    for case in read_trajectories(folder):
        if case.weight_scale != loaded:
            model.load(config, scaled(weights, case.weight_scale))
            loaded = case.weight_scale
        try:
            trace = model.trajectory(case)
        except NotReplayed as reason:
            yield ruler.skipped(case.name, reason)
            continue
        pairs = [(got, want) for got, want in zip(trace.latents, case.latents, strict=True)]
        yield ruler.close(case.name, [*pairs, (trace.latents[-1], case.final)], tolerance)
        yield Ruler("sampling").close(f"{case.name} times", [(case.times[:-1], case.expected_times)], TIME_TOLERANCE)
        yield from _replay_branches(case, trace, dtype)


def scaled(weights: dict[str, Tensor], factors: dict[str, float]) -> dict[str, Tensor]:
    """The weights with the named ones multiplied."""
    return {name: value * factors[name] if name in factors else value for name, value in weights.items()}


def _replay_branches(case: Trajectory, trace: Trace, dtype: torch.dtype) -> Iterator[Row]:
    ruler = Ruler("sampling")
    pairs: list[tuple[object, object]] = [(trace.called, {b: e["steps_called"] for b, e in case.branches.items()})]
    decided_by_values = case.teacache is not None and not case.taylorseer
    if trace.computed is not None and not (decided_by_values and dtype != torch.float32):
        pairs.append((trace.computed, {b: e["steps_computed"] for b, e in case.branches.items()}))
    yield ruler.exact(f"{case.name} branches", pairs)
    if trace.changes is not None and case.trace and dtype == torch.float32:
        expected = {b: [(row[0], row[1]) for row in rows if row[1] is not None] for b, rows in case.trace.items()}
        got = {b: [c for c in changes if c[0] in dict(expected.get(b, ()))] for b, changes in trace.changes.items()}
        if {b: [s for s, _ in c] for b, c in got.items()} != {b: [s for s, _ in c] for b, c in expected.items()}:
            yield ruler.failed(f"{case.name} changes", "TeaCache measured other steps than the reference")
            return
        values = [(torch.tensor([v for _, v in got[b]]), torch.tensor([v for _, v in expected[b]])) for b in expected]
        yield ruler.close(f"{case.name} changes", values, TRACE_TOLERANCE)
