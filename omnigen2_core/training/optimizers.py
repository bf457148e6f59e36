"""Muon for hidden matrices, AdamW for the rest."""

from __future__ import annotations

from typing import Iterable, Mapping

import torch
from torch import Tensor, nn

from .device import fast_dtype
from .recipe import Recipe

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Brings all singular values of [N, rows, columns] matrices near 1 by Newton-Schulz iteration, in bfloat16 where that is fast.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    x = matrices.to(fast_dtype(matrices.device))
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; matrices of one shape are treated together, kernels as [out, rest].

    The step of a matrix has the root mean square of 0.2 * lr, about that of AdamW at the same rate.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, parameters in by_shape.items():
                updates = []
                for p in parameters:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(p.grad, buffer, group["momentum"]).flatten(1))
                stacked = torch.stack(updates)
                scale = 0.2 * max(stacked.shape[1:]) ** 0.5
                for p, update in zip(parameters, orthogonalise(stacked)):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view(shape), alpha=-group["lr"] * scale)


def build_optimizers(
    parameters: Mapping[str, nn.Parameter], recipe: Recipe, hidden: Iterable[str] = ()
) -> list[torch.optim.Optimizer]:
    """Optimisers over named parameters: Muon for the matrices and kernels named in `hidden` if the recipe asks for it."""
    chosen = {name for name in hidden if parameters[name].ndim >= 2} if recipe.muon_learning_rate else set()
    rest = {name: p for name, p in parameters.items() if name not in chosen}
    groups = [
        {"params": [p for p in rest.values() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True)
    ]
    if chosen:
        optimizers.append(
            Muon([parameters[name] for name in parameters if name in chosen], recipe.muon_learning_rate, weight_decay=recipe.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
