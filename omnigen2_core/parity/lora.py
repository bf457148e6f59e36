"""The transformer's forward passes with a LoRA at several strengths."""

from __future__ import annotations

from typing import Iterator, Protocol

import torch
from torch import Tensor

from .dit import VelocityModel, read_cases
from .folder import GoldenFolder, NotReplayed, named
from .report import Row, Ruler

TOLERANCE = 5e-5
_STRENGTH = "scale_"


class LoRAModel(VelocityModel, Protocol):
    """A `VelocityModel` that can take a LoRA."""

    def apply_lora(self, state: dict[str, Tensor], strength: float) -> None:
        """Add the LoRA, under the names of its file, to the weights loaded last."""


def replay_lora(
    folder: GoldenFolder, model: LoRAModel, dtype: torch.dtype, tolerance: float = TOLERANCE
) -> Iterator[Row]:
    """Every case of `lora.json`: the case's name, then its strength."""
    ruler, tensors = Ruler("lora", dtype), folder.tensors("lora_cases")
    state = folder.tensors("lora_weights")
    cases = {case.name: case for case in read_cases(folder)}
    for name in folder.json("lora")["cases"]:
        base, _, strength = name.rpartition("/")
        case, expected = cases[base], named(tensors, name)
        model.load(folder.json("dit_config"), folder.tensors("dit_weights"))
        try:
            model.apply_lora(state, float(strength.removeprefix(_STRENGTH)))
            pairs = [(got, expected[f"velocity.{i}"]) for i, got in enumerate(model.velocity(case))]
        except NotReplayed as reason:
            yield ruler.skipped(name, reason)
            continue
        yield ruler.close(name, pairs, tolerance)
