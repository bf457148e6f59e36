"""The transformer's single forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Protocol

import torch
from torch import Tensor

from .folder import GoldenFolder, NotReplayed, named
from .report import Row, Ruler

VELOCITY_TOLERANCE = 2e-5


@dataclass(frozen=True)
class DiTCase:
    """Inputs and expected velocities of one forward pass.

    Attributes:
        latents: One [C, H, W] for each sample; `as_list` says that the sizes differ.
        timestep: [B]. text: [B, L, D]. text_mask: [B, L].
        references: For each sample its list of [C, h, w], empty for none.
        velocities: One [C, H, W] for each sample.
        debug: Inner values of the reference, by name.
    """

    name: str
    latents: list[Tensor]
    as_list: bool
    timestep: Tensor
    text: Tensor
    text_mask: Tensor
    references: list[list[Tensor]]
    velocities: list[Tensor]
    debug: dict[str, Tensor]


class VelocityModel(Protocol):
    """What replays forward passes: our transformer, or the same weights in a host."""

    def load(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Take the weights that the following cases use."""

    def velocity(self, case: DiTCase) -> list[Tensor]:
        """The velocity of every sample. Raises NotReplayed for a case that it has no way to run."""


def read_cases(folder: GoldenFolder) -> Iterator[DiTCase]:
    """The cases that `dit_cases.json` names."""
    tensors = folder.tensors("dit_cases")
    for name, entry in folder.json("dit_cases").items():
        values = named(tensors, name)
        batch = entry["batch"]
        yield DiTCase(
            name=name,
            latents=[values[f"latents.{i}"] for i in range(batch)],
            as_list=entry.get("images_given_as_list", False),
            timestep=values["timestep"],
            text=values["text"],
            text_mask=values["text_mask"],
            references=[numbered(values, f"ref.{i}.") for i in range(batch)],
            velocities=[values[f"velocity.{i}"] for i in range(batch) if f"velocity.{i}" in values],
            debug={key[len("dbg."):]: value for key, value in values.items() if key.startswith("dbg.")},
        )


def numbered(values: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """`prefix`0, `prefix`1, ... as far as they go."""
    found = []
    while f"{prefix}{len(found)}" in values:
        found.append(values[f"{prefix}{len(found)}"])
    return found


def replay_velocities(
    folder: GoldenFolder, model: VelocityModel, dtype: torch.dtype, tolerance: float = VELOCITY_TOLERANCE
) -> Iterator[Row]:
    """Every forward pass through `model`."""
    ruler = Ruler("dit", dtype)
    cases = list(read_cases(folder))
    model.load(folder.json("dit_config"), folder.tensors("dit_weights"))
    for case in cases:
        try:
            yield ruler.close(case.name, zip(model.velocity(case), case.velocities, strict=True), tolerance)
        except NotReplayed as reason:
            yield ruler.skipped(case.name, reason)
