"""TaylorSeer (arXiv 2503.06923): between full evaluations, extrapolate the layers' output by a Taylor series.

The method as published keeps a series for every layer but lets each layer ignore its input, so only the last
layer's series reaches the result; only that one is kept here.
"""

from dataclasses import dataclass, field
from math import factorial

from torch import Tensor

from ..joint import LayerStack
from ..rope import SampleLayout
from .protocol import Evaluation


@dataclass
class TaylorSeer:
    """The cache of one branch; it counts its own calls.

    interval: after the warm-up one full evaluation in so many. max_order: highest derivative kept.
    warm_up: full evaluations at the start (the reference's first_enhance).
    """

    interval: int = 3
    max_order: int = 4
    warm_up: int = 5
    _calls: int = field(default=0, repr=False)
    _since_full: int = field(default=0, repr=False)
    _last_full: int = field(default=0, repr=False)
    _factors: list[Tensor] = field(default_factory=list, repr=False)
    _layouts: tuple[SampleLayout, ...] = field(default=(), repr=False)

    def run_layers(self, stack: LayerStack, evaluation: Evaluation) -> Tensor:
        call, self._calls = self._calls, self._calls + 1
        if self._layouts != stack.joint.layouts:
            self._factors, self._layouts = [], stack.joint.layouts
            full = True
        else:
            full = call < self.warm_up or self._since_full == self.interval - 1
        if full:
            out = stack.run()
            self._update(out, call)
            self._since_full = 0
            return out
        self._since_full += 1
        return self._extrapolate(call - self._last_full)

    def _update(self, out: Tensor, call: int) -> None:
        """Backward differences over the distance between full calls; the warm-up's last call takes the first one."""
        distance = call - self._last_full
        factors = [out]
        if call >= self.warm_up - 1:
            for old in self._factors[: self.max_order]:
                factors.append((factors[-1] - old) / distance)
        self._factors, self._last_full = factors, call

    def _extrapolate(self, distance: int) -> Tensor:
        return sum(factor * (distance**order / factorial(order)) for order, factor in enumerate(self._factors))
