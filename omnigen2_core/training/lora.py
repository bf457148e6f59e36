"""LoRA as the reference trains it: a low-rank change beside every attention projection, all else frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import LoRAError

TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
"""Endings of the names of the layers that the reference changes: those of every attention, refiners included."""


class LoRALinear(nn.Module):
    """A frozen linear layer and its change: W x + B A x, x [..., in]. alpha equals the rank, so the change is not scaled.

    A [rank, in] starts normal with a deviation of 1 / rank and B [out, rank] at 0, both in fp32: at first nothing changes.
    """

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator | None = None):
        super().__init__()
        self.base = base.requires_grad_(False)
        device = base.weight.device
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32, device=device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32, device=device)
        with torch.no_grad():
            start = torch.empty(self.lora_A.weight.shape).normal_(0, 1 / rank, generator=generator)
            self.lora_A.weight.copy_(start)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype))).to(out.dtype)


def add_lora(
    model: nn.Module, rank: int = 8, *, targets: Sequence[str] = TARGETS, seed: int = 0
) -> dict[str, nn.Parameter]:
    """Freeze `model` and wrap, in place, each of its linear layers whose name ends in one of `targets`.

    Returns what is left to train, by the names `<layer>.lora_A.weight` and `<layer>.lora_B.weight`.
    Raises LoRAError if the rank is below 1 or no layer has such a name.
    """
    if rank < 1:
        raise LoRAError(f"A LoRA's rank must be at least 1, not {rank}.")
    model.requires_grad_(False)
    chosen = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and _ends_in(name, targets)]
    if not chosen:
        raise LoRAError(f"The model has no linear layer named {', '.join(targets)}; name layers that it has.")
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name in chosen:
        parent, _, own = name.rpartition(".")
        wrapped = LoRALinear(model.get_submodule(name), rank, generator)
        setattr(model.get_submodule(parent), own, wrapped)
        parameters[f"{name}.lora_A.weight"] = wrapped.lora_A.weight
        parameters[f"{name}.lora_B.weight"] = wrapped.lora_B.weight
    return parameters


def save_lora(weights: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write what `add_lora` named (or averages of it) as the reference does: `transformer.<layer>.lora_A.weight`, no alpha."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"transformer.{name}": w.detach().to("cpu", dtype).contiguous() for name, w in weights.items()}
    save_file(state, path, metadata={"format": "pt"})


def _ends_in(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith("." + target) for target in targets)
