"""What an edit of the full-size model holds on a card of a given size, by ComfyUI's own memory management.

No card is needed: weights are files without contents, the card is one that only counts.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from .cases import TEXT, parse
from .full_size import write_parts
from .results import Claim, MemoryRow, Results
from .verdict import FAILS, Bar, Estimate

CASE = parse("edit-1024x1024")
GB = 1e9


@dataclass(frozen=True)
class Card:
    """Weights in a format, and the size in bytes of the card, which is the bar as well."""

    format: str
    size: float
    note: str = ""

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"{self.format}{self.note}, a card of {self.size / GB:g} GB"


CARDS = (Card("bf16", 11 * GB), Card("fp8", 7 * GB), Card("q4_k", 5 * GB), Card("bf16", 3 * GB, " with partial loading"))
NOTE = (
    "Memory is by ComfyUI's own accounting with a simulated limit: its memory management is told of a card of that "
    "size, loads and unloads the full-size model's weights (files without contents) through this pack's loaders, and "
    "every tensor that the card would hold is counted in the whole of an edit of one step with the three evaluations "
    "of the guidance, a question about its picture, and the edit once more. A GB is 10^9 bytes. Not counted is what "
    "PyTorch and a card's libraries take for themselves (their context, workspaces of convolutions, gaps between "
    "tensors), and ComfyUI's loading of weights page by page, which it has on NVIDIA cards."
)


def measure(host: ModuleType, results: Results) -> None:
    """Adds the peak on each card beside its bar, and what was held in each phase."""
    for card in CARDS:
        print(f"   {card.title}", flush=True)
        what, bar = f"{CASE.title}, and a question about its picture, {card.title}: peak memory", Bar(card.size / GB, at_most=True)
        with tempfile.TemporaryDirectory(prefix="omnigen2-") as folder:
            files = write_parts(Path(folder), card.format)
            try:
                phases = host.edit_phases(files, card.size, CASE.width, TEXT)
            except torch.OutOfMemoryError as error:
                results.claims.append(Claim(what, Estimate.exact(card.size / GB), " GB", bar, FAILS))
                results.notes.append(f"{what}: the card was too small ({error}).")
                continue
        for phase in phases:
            held = "; ".join(
                f"{name} {size / GB:.2f}{'' if phase.whole[name] else ', in part'}" for name, size in phase.weights.items()
            )
            results.memory.append(
                MemoryRow(card.title, phase.name, held, phase.activations / GB, phase.peak / GB, phase.planned / GB)
            )
        results.claims.append(Claim.judged(what, Estimate.exact(max(phase.peak for phase in phases) / GB), bar, " GB"))
    results.notes.append(NOTE)
