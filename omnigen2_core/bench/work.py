"""What a run consists of: how many layers of each kind at which numbers of tokens.

A run of the published model takes hours on a CPU, but its layers are alike. So each kind of step is timed by itself and
a run is the sum of its steps. What is counted here follows the code that runs; the tests count its calls and compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Literal, NamedTuple

from ..acceleration.protocol import Work
from ..transformer import OmniGen2Config
from .cases import TEXT, Case

Kind = Literal["layer", "last", "image", "text", "noise", "reference", "modulation", "ends"]
"""layer: a main layer on all tokens. last: the last one, of which only the image's tokens are read. image: a main layer
on the image's tokens alone, against kept keys and values. text, noise, reference: a layer of the three refiners.
modulation: the projection of the time embedding for one layer, where it is not part of the layer. ends: everything else
of an evaluation (embeddings, rotary tables, output)."""


class Step(NamedTuple):
    """A kind of step at its size: queries and keys are tokens of each of `batch` rows."""

    kind: Kind
    queries: int
    keys: int
    batch: int = 1


Plan = Counter[Step]
"""How often each step is done in a run."""

TEMPLATE = ("cond", "uncond", "uncond")
"""The evaluations of a step with core's own text-to-image template."""


def ours(case: Case, record: Iterable[Work], config: OmniGen2Config = OmniGen2Config()) -> Plan:
    """The steps of our transformer in a run with this record.

    Text is refined once a run. Image, references and modulations are made once for all branches of a step.
    """
    plan: Plan = Counter()
    image, refiners = case.image, config.num_refiner_layers
    texts: set[bool] = set()
    for _, group in groupby(record, key=lambda work: work.step):
        evaluated = [work for work in group if work.kind != "omitted"]
        if not evaluated:
            continue
        plan[Step("noise", image, image)] += refiners
        plan[Step("modulation", 1, 1)] += refiners + max(_layers(work, config) for work in evaluated)
        if any(work.context and case.has_references(work.branch) for work in evaluated):
            plan[Step("reference", image, image, case.references)] += refiners
            plan[Step("modulation", 1, 1)] += refiners
        for work in evaluated:
            keys = case.layout(work.branch).length
            if work.context:
                texts.add(work.branch == "cond")
            plan[Step("ends", image, keys)] += 1
            layers = _layers(work, config)
            if not work.context:
                plan[Step("image", image, keys)] += layers
                continue
            last = layers == config.num_layers
            plan[Step("layer", keys, keys)] += layers - last
            plan[Step("last", image, keys)] += last
    plan[Step("text", TEXT, TEXT)] += refiners * len(texts)
    return +plan


def _layers(work: Work, config: OmniGen2Config) -> int:
    return work.layers if work.kind == "skipped" else config.num_layers


def native(case: Case, branches: Iterable[str], steps: int, config: OmniGen2Config = OmniGen2Config()) -> Plan:
    """The steps of ComfyUI's own transformer, which shares nothing between the evaluations that it is asked for."""
    plan: Plan = Counter()
    image, refiners = case.image, config.num_refiner_layers
    for branch in branches:
        keys = case.layout(branch).length
        plan[Step("ends", image, keys)] += steps
        plan[Step("text", TEXT, TEXT)] += refiners * steps
        plan[Step("noise", image, image)] += refiners * steps
        plan[Step("layer", keys, keys)] += config.num_layers * steps
        if case.has_references(branch):
            # It refines all references as one sequence.
            together = case.references * image
            plan[Step("reference", together, together)] += refiners * steps
    return plan


def evaluations(plan: Plan) -> int:
    """How many evaluations a run has."""
    return sum(count for step, count in plan.items() if step.kind == "ends")


def compose(plan: Plan, seconds: Mapping[Step, float]) -> float:
    """Seconds of a run from those of its steps."""
    return sum(count * seconds[step] for step, count in plan.items())


def flops(plan: Plan, case: Case, config: OmniGen2Config = OmniGen2Config()) -> float:
    """Floating-point operations of a run's matrix products and attention, a multiplication and an addition apart."""
    return sum(count * step_flops(step, case, config) for step, count in plan.items())


def step_flops(step: Step, case: Case, config: OmniGen2Config = OmniGen2Config()) -> float:
    """Floating-point operations of one step."""
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    patch = config.patch_size**2
    if step.kind == "modulation":
        return 2 * config.time_width * 4 * width
    if step.kind == "ends":
        patches = step.keys - TEXT
        embedded = patches * patch * config.in_channels + TEXT * config.text_feat_dim
        time = (256 + config.time_width) * config.time_width
        out = config.time_width * width + step.queries * width * patch * config.velocity_channels
        return 2 * (embedded * width + time + out)
    queries = 2 * width * width + 3 * width * config.feed_forward_size
    keys = 2 * width * head * config.num_kv_heads
    own_keys = step.queries if step.kind == "image" else step.keys
    attention = 2 * step.queries * step.keys * width
    return 2 * step.batch * (step.queries * queries + own_keys * keys + attention)
