"""What a training run does, as one value that is written beside its results."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Mapping

from ..errors import OmniGen2Error


@dataclass(frozen=True)
class Recipe:
    """Settings of a run.

    Attributes:
        steps: Optimiser steps in the whole run.
        learning_rate: Peak rate of AdamW.
        muon_learning_rate: Peak rate of Muon for hidden matrices; 0 trains everything with AdamW.
        warmup: Steps of linear rise from 0.
        decay: Share 0..1 of the run, at its end, over which the rate falls linearly to `final_rate` of its peak.
        final_rate: Rate at the last step as a share of the peak.
        weight_decay, betas, eps: AdamW's; Muon uses the same weight decay.
        clip: Largest gradient norm; 0 does not clip.
        ema: Decay of the averaged weights per step; 0 keeps none.
        seed: Start of all chance in the run.
        bf16: Compute in bfloat16 under autocast where the machine is fast at it; weights and their updates stay in their own type.
        log_every, save_every: In steps.
    """

    steps: int
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.0
    warmup: int = 50
    decay: float = 0.3
    final_rate: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    bf16: bool = True
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.steps < 1 or self.warmup < 0 or not 0 <= self.decay <= 1 or not 0 <= self.ema < 1:
            raise OmniGen2Error(
                f"The recipe has steps={self.steps}, warmup={self.warmup}, decay={self.decay}, ema={self.ema}; "
                "steps must be at least 1, warmup at least 0, decay within 0..1 and ema within 0..1."
            )

    def rate(self, step: int) -> float:
        """Learning rate at a step (0-based) as a share of its peak."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        start = self.steps * (1 - self.decay)
        fall = 0.0 if step < start else min(1.0, (step - start) / max(1.0, self.steps - start))
        return rise * (1 - (1 - self.final_rate) * fall)

    def ema_decay(self, step: int) -> float:
        """Averaging decay at a step: short at first, so that the average forgets the random start."""
        return min(self.ema, (1 + step) / (10 + step)) if not math.isclose(self.ema, 0.0) else 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Reads parsed JSON. Raises OmniGen2Error for a key that no recipe has."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise OmniGen2Error(f"A recipe has no setting {sorted(unknown)[0]!r}; it has {', '.join(cls.__dataclass_fields__)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)
