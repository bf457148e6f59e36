"""A running average of the weights, which samples better than the weights themselves."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """Averages named parameters. `weights` maps names to the averages, in fp32."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.weights: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Moves the average by 1 - decay toward the parameters."""
        new = [parameters[name].detach().float() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), new, 1 - decay)
