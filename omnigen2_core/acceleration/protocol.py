"""What a sampling run remembers, and the one place where a cache may stand in for the main layers.

The loop creates a `Run` per sampling run and passes `run.evaluation(branch, step)` to each forward pass. Nothing is
kept on the model; when the run object goes, everything it remembers goes with it.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from ..joint import LayerStack

T = TypeVar("T")


class BranchCache(Protocol):
    """One method of skipping or approximating layers, holding the state of one branch of one run."""

    def run_layers(self, stack: LayerStack, evaluation: "Evaluation") -> tuple[Tensor, bool]:
        """The layers' output [B, S, D] for `stack.joint`, and whether the layers were really computed."""


@dataclass
class Run:
    """One sampling run of `steps` steps.

    make_cache: called once for each branch, so that branches never share a cache; None: every layer is computed.
    computed, skipped: for each branch the step indices whose layers were computed, or stood in for.
    """

    steps: int
    make_cache: Callable[[], BranchCache] | None = None
    computed: dict[str, list[int]] = field(default_factory=dict)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    _caches: dict[str, BranchCache] = field(default_factory=dict)
    _memory: dict[Hashable, object] = field(default_factory=dict)

    def evaluation(self, branch: str, step: int, text_key: Hashable | None = None) -> "Evaluation":
        """The place in the run of one forward pass.

        branch: evaluations of one name follow one another through the steps ("cond", "ref", "uncond").
        text_key: names the text; evaluations with an equal key must pass equal text, which is then refined once per
        run. None: the text is refined each time.
        """
        return Evaluation(self, branch, step, text_key)


@dataclass(frozen=True)
class Evaluation:
    """One forward pass's place in its run: the `state` argument of the transformer."""

    run: Run
    branch: str
    step: int
    text_key: Hashable | None = None

    @property
    def first(self) -> bool:
        return self.step == 0

    @property
    def last(self) -> bool:
        return self.step == self.run.steps - 1

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """The run's value for `key`, made at the first call."""
        memory = self.run._memory
        if key not in memory:
            memory[key] = make()
        return memory[key]

    def run_layers(self, stack: LayerStack) -> Tensor:
        """The layers' output, through the branch's cache where the run has one."""
        run = self.run
        if run.make_cache is None:
            hidden, computed = stack.run(), True
        else:
            if self.branch not in run._caches:
                run._caches[self.branch] = run.make_cache()
            hidden, computed = run._caches[self.branch].run_layers(stack, self)
        (run.computed if computed else run.skipped).setdefault(self.branch, []).append(self.step)
        return hidden
