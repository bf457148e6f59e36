"""TeaCache (arXiv 2411.19108): skip the layers while their input has changed little since they last ran."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..joint import LayerStack
from .protocol import Evaluation

# The reference's fit, for OmniGen2, of the output's relative change to the signal's, highest power first.
COEFFICIENTS = (-5.48259225, 11.48772289, -4.47407401, 2.47730926, -0.03316487)


def expected_change(signal_change: float) -> float:
    """The fitted relative change of the layers' output; can be negative."""
    value = 0.0
    for coefficient in COEFFICIENTS:
        value = value * signal_change + coefficient
    return value


@dataclass
class TeaCache:
    """The cache of one branch. threshold: accumulated expected change at which the layers run again.

    The first and last step always run, and so does the first call of a branch that joins the run later (guidance
    range). In a batch each sample accumulates its own change and the layers run as soon as one of them needs it.
    """

    threshold: float = 0.05
    _signal: Tensor | None = field(default=None, repr=False)
    _residual: Tensor | None = field(default=None, repr=False)
    _accumulated: list[float] = field(default_factory=list, repr=False)

    def run_layers(self, stack: LayerStack, evaluation: Evaluation) -> Tensor:
        signal, previous = stack.signal(), self._signal
        self._signal = signal
        before = stack.joint.image(stack.joint.hidden)
        fresh = previous is None or previous.shape != signal.shape
        if not (fresh or evaluation.first or evaluation.last):
            difference, size = (x.abs().mean((1, 2), dtype=torch.float32) for x in (signal - previous, previous))
            self._accumulated = [
                total + expected_change(change)
                for total, change in zip(self._accumulated, (difference / size).tolist(), strict=True)
            ]
            if max(self._accumulated) < self.threshold:
                return before + self._residual
        out = stack.run()
        self._residual = out - before
        self._accumulated = [0.0] * len(before)
        return out
