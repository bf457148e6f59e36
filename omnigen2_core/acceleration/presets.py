"""Which methods save how much work: settings for a run, and the sets of them that have names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

from ..errors import OmniGen2Error
from .adaptive_guidance import AdaptiveGuidance
from .first_block import FirstBlockCache
from .guidance_reuse import GuidanceReuse
from .kept_context import KeptContext
from .protocol import BranchCache, GuidanceMethod, Run
from .taylorseer import TaylorSeer
from .teacache import TeaCache

LAYER_METHODS = ("first_block", "teacache", "taylorseer")


@dataclass(frozen=True)
class Acceleration:
    """Settings of every method; the defaults are all off, and then a run computes everything.

    Attributes:
        context_refresh: `KeptContext.refresh`; 1 is off.
        guidance_every: `GuidanceReuse.every`; 1 is off.
        disagreement: `AdaptiveGuidance.disagreement`; 0 is off.
        first_block: `FirstBlockCache.threshold`; 0 is off.
        teacache: `TeaCache.threshold`; 0 is off.
        taylorseer: `TaylorSeer.interval`; 1 is off.

    Of the last three, which all stand in for the layers, one at most. Raises OmniGen2Error for more, and for values
    out of range.
    """

    context_refresh: int = 1
    guidance_every: int = 1
    disagreement: float = 0.0
    first_block: float = 0.0
    teacache: float = 0.0
    taylorseer: int = 1

    def __post_init__(self) -> None:
        off = {field.name: field.default for field in fields(self)}
        for name, value in vars(self).items():
            if not value >= off[name]:
                raise OmniGen2Error(f"{name} is {value}; give at least {off[name]:g}, which is off.")
        on = [name for name in LAYER_METHODS if getattr(self, name) > off[name]]
        if len(on) > 1:
            raise OmniGen2Error(
                f"{' and '.join(on)} stand in for the same layers, so only one of them can be on; set the others to "
                "what is off: 0, or 1 for taylorseer."
            )

    def run(self, steps: int) -> Run:
        """What one sampling run of `steps` steps remembers."""
        guidance: list[GuidanceMethod] = []
        if self.disagreement > 0:
            guidance.append(AdaptiveGuidance(self.disagreement))
        if self.guidance_every > 1:
            guidance.append(GuidanceReuse(self.guidance_every))
        make_context = partial(KeptContext, self.context_refresh) if self.context_refresh > 1 else None
        return Run(steps, self._make_cache(), make_context, guidance)

    def _make_cache(self) -> Callable[[], BranchCache] | None:
        if self.first_block > 0:
            return partial(FirstBlockCache, self.first_block)
        if self.teacache > 0:
            return partial(TeaCache, self.teacache)
        if self.taylorseer > 1:
            return partial(TaylorSeer, self.taylorseer)
        return None


@dataclass(frozen=True)
class Preset:
    """Methods with their settings and, apart from them, the run for which these were chosen.

    steps, solver: advice, which only the sampler can follow.
    """

    acceleration: Acceleration
    steps: int
    solver: str


PRESETS = {
    "exact": Preset(Acceleration(), steps=50, solver="euler"),
    "balanced": Preset(Acceleration(context_refresh=3, guidance_every=2), steps=16, solver="euler"),
    "turbo": Preset(Acceleration(context_refresh=5, guidance_every=2), steps=10, solver="euler"),
}
"""By the name under which a workflow keeps the choice."""
