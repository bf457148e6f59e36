"""What a sampling run remembers, and the three places where a method may save work.

The loop creates a `Run` per sampling run and passes `run.evaluation(branch, step)` to each forward pass. Nothing is
kept on the model; when the run object goes, everything it remembers goes with it. In the order of the work:

1. `GuidanceMethod`: which branches of the guidance are evaluated at a step, and what stands in for the others.
2. `ContextMethod`: whether an evaluation computes text and references too, or the image's tokens alone.
3. `BranchCache`: whether it computes the main layers, or something stands in for them.

Each works without the others. What was computed and what was not is kept in `Run.record`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..guidance import Ask
from ..joint import JointSequence, LayerStack
from ..rope import SampleLayout

T = TypeVar("T")
Predictions = Mapping[str, Tensor]

Kind = Literal["full", "image", "skipped", "omitted"]
"""full: all tokens through all layers. image: the image's tokens alone through all layers, against kept text and
references. skipped: not all layers. omitted: not evaluated at all, another branch's prediction stood in."""


class Work(NamedTuple):
    """One evaluation of a run, or one that was saved.

    layers: how many main layers ran. context: whether text and references were computed.
    """

    step: int
    branch: str
    kind: Kind
    layers: int = 0
    context: bool = False


class GuidanceMethod(Protocol):
    """One method of leaving branches out, holding the state of one run."""

    def predict(self, branches: Sequence[str], ask: Ask) -> Predictions:
        """Velocities of all `branches`; `ask` evaluates some of them. The first is the prompt's own: it is always
        evaluated, and the others may be derived from it."""


class ContextMethod(Protocol):
    """One method of leaving text and references out of an evaluation, holding the state of one branch of one run."""

    def holds(self, layouts: tuple[SampleLayout, ...]) -> bool:
        """Whether what is kept serves the evaluation that begins."""

    def keys_values(self, layer: int, joint: JointSequence, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer's queries see: keys and values [B, KV, S, hd] of the tokens in `joint`, and of those kept."""

    def complete(self, joint: JointSequence) -> None:
        """All layers have run on all tokens of `joint`."""


class BranchCache(Protocol):
    """One method of skipping or approximating layers, holding the state of one branch of one run."""

    def run_layers(self, stack: LayerStack, evaluation: "Evaluation") -> Tensor:
        """The image's tokens [B, n, D] after the layers, as `stack.run()` gives them, or what stands in for them."""


@dataclass
class Run:
    """One sampling run of `steps` steps.

    make_cache, make_context: called once for each branch, so that branches never share state; None: no such method.
    guidance: methods that see the branches together, made for this run alone; each is asked by the one after it.
    record: everything in the order in which it was done, to be counted or replayed.
    """

    steps: int
    make_cache: Callable[[], BranchCache] | None = None
    make_context: Callable[[], ContextMethod] | None = None
    guidance: Sequence[GuidanceMethod] = ()
    record: list[Work] = field(default_factory=list)
    _caches: dict[str, BranchCache] = field(default_factory=dict, repr=False)
    _contexts: dict[str, ContextMethod] = field(default_factory=dict, repr=False)
    _memory: dict[Hashable, object] = field(default_factory=dict, repr=False)
    _shared: dict[tuple[str, torch.device], tuple[list[Tensor], dict]] = field(default_factory=dict, repr=False)

    def evaluation(
        self, branch: str, step: int, text_key: Hashable | None = None, *, plain: bool = False
    ) -> "Evaluation":
        """The place in the run of one forward pass.

        branch: evaluations of one name follow one another through the steps ("cond", "ref", "uncond").
        text_key: names the text; evaluations with an equal key must pass equal text, which is then refined once per
        run. None: the text is refined each time, and nothing is shared with other branches.
        plain: everything is computed, and no method learns of it.
        """
        cache = context = None
        if not plain and self.make_cache is not None:
            cache = made_once(self._caches, branch, self.make_cache)
        if not plain and self.make_context is not None:
            context = made_once(self._contexts, branch, self.make_context)
        return Evaluation(self, branch, step, text_key, cache, context)

    def predict(self, branches: Sequence[str], step: int, evaluate: Ask) -> Predictions:
        """Velocities of `branches`, the prompt's own first, of which `evaluate` gets to compute what is needed."""
        evaluated: set[str] = set()

        def ask(some: Sequence[str]) -> Predictions:
            evaluated.update(some)
            return evaluate(some)

        for method in self.guidance:
            ask = partial(method.predict, ask=ask)
        predictions = ask(branches)
        self.record += [Work(step, branch, "omitted") for branch in branches if branch not in evaluated]
        return predictions

    @property
    def saves(self) -> bool:
        """Whether there is any method that saves work."""
        return bool(self.make_cache or self.make_context or self.guidance)

    @property
    def computed(self) -> dict[str, list[int]]:
        """For each branch the steps whose layers were all computed."""
        return self._steps("full", "image")

    @property
    def skipped(self) -> dict[str, list[int]]:
        """For each branch the steps at which something stood in for layers."""
        return self._steps("skipped")

    def _steps(self, *kinds: Kind) -> dict[str, list[int]]:
        steps: dict[str, list[int]] = {}
        for work in self.record:
            if work.kind in kinds:
                steps.setdefault(work.branch, []).append(work.step)
        return steps


@dataclass(frozen=True)
class Evaluation:
    """One forward pass's place in its run: the `state` argument of the transformer. Made by `Run.evaluation`."""

    run: Run
    branch: str
    step: int
    text_key: Hashable | None = None
    cache: BranchCache | None = None
    context: ContextMethod | None = None

    @property
    def first(self) -> bool:
        return self.step == 0

    @property
    def last(self) -> bool:
        return self.step == self.run.steps - 1

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """The run's value for `key`, made at the first call."""
        return made_once(self.run._memory, key, make)

    def memory_of(self, name: str, inputs: Sequence[Tensor]) -> dict[Hashable, object]:
        """A memory for what is made of `inputs` alone, empty as soon as one of them differs.

        The branches of a step look at one image at one time, so what they make of those is made once. Values decide:
        a sampler may ask for a step at several places.
        """
        if self.text_key is None:
            return {}
        # A host may evaluate branches on several devices at once.
        key = name, inputs[0].device
        kept = self.run._shared.get(key)
        if kept is None or not _all_equal(kept[0], inputs):
            # Copies, since a sampler may write into its latents.
            kept = self.run._shared[key] = [tensor.clone() for tensor in inputs], {}
        return kept[1]

    def needs_context(self, layouts: tuple[SampleLayout, ...]) -> bool:
        """Whether text and references are to be computed; asked once for each evaluation."""
        return self.context is None or not self.context.holds(layouts)

    def run_layers(self, stack: LayerStack) -> Tensor:
        """The image's tokens after the layers, through the branch's cache where the run has one."""
        out = stack.run() if self.cache is None else self.cache.run_layers(stack, self)
        kind: Kind = "skipped"
        if stack.ran >= len(stack):
            kind = "full" if stack.joint.has_context else "image"
        if kind == "full" and self.context is not None:
            self.context.complete(stack.joint)
        self.count(kind, stack.ran, stack.joint.has_context)
        return out

    def count(self, kind: Kind, layers: int, context: bool) -> None:
        """Adds this evaluation to the run's record; for hosts that run layers in ways of their own."""
        self.run.record.append(Work(self.step, self.branch, kind, layers, context))


def _all_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(some, others)
    )


def made_once(made: dict[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    """The value for `key` in `made`, made at the first call."""
    if key not in made:
        made[key] = make()
    return made[key]
