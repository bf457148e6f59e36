"""What a sampling run cost, as the line that a sampler shows on itself."""

from __future__ import annotations

import time
from collections import Counter
from typing import Iterable

import torch

from ...omnigen2_core.acceleration.protocol import Work

# The key under which web/js/notes.js finds the line in a node's output.
READOUT = "omnigen2_readout"


class Meter:
    """Time and, on an NVIDIA or AMD card, peak memory from its making on."""

    def __init__(self, device: torch.device):
        self._card = device if device.type == "cuda" else None
        self._started = time.monotonic()
        if self._card is not None:
            torch.cuda.reset_peak_memory_stats(self._card)

    def line(self, record: Iterable[Work] | None) -> str:
        """What was computed and skipped, seconds, and peak memory.

        Without a record, or without an evaluation in it, nobody counted: what TorchCompileModel compiles does not.
        """
        counted = list(record or ())
        parts = [evaluations(counted)] if any(work.kind != "omitted" for work in counted) else []
        parts.append(f"{time.monotonic() - self._started:.1f} s")
        if self._card is not None:
            parts.append(f"peak {torch.cuda.max_memory_allocated(self._card) / 1e9:.1f} GB")
        return " · ".join(parts)


def evaluations(record: Iterable[Work]) -> str:
    """How many evaluations a run had, and what became of them."""
    kinds = Counter(work.kind for work in record)
    found = {
        "in full": kinds["full"],
        "of the picture's tokens alone": kinds["image"],
        "skipped": kinds["skipped"] + kinds["omitted"],
    }
    total = f"{kinds.total()} evaluations"
    if kinds.total() == kinds["full"]:
        return total
    return f"{total}: " + ", ".join(f"{count} {name}" for name, count in found.items() if count)
