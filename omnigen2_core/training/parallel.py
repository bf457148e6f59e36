"""Training with several processes on one machine: each computes a share of every batch, all take the same step."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Iterable

import torch
from torch import nn


class Workers:
    """This process among `count` equal ones, which meet through a file that none of them has used before."""

    def __init__(self, rank: int = 0, count: int = 1, meeting_file: str | Path | None = None):
        self.rank, self.count = rank, count
        if count > 1:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=count, timeout=timedelta(minutes=20)
            )

    @property
    def leads(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes. A parameter without one counts as zero."""
        if self.count == 1:
            return
        parameters = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in parameters])
        torch.distributed.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = grad.view_as(p).to(p.dtype)
