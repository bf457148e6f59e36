"""The training loop.

A run is a function of its recipe and dataset: batches are asked for by step number, chance is seeded by step number,
and a checkpoint holds the rest, so an interrupted run continues as if nothing had happened.
"""

from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Protocol

import torch
from torch import Tensor, nn

from ..errors import OmniGen2Error
from .checkpoint import STATE_FILE, load_checkpoint, save_checkpoint
from .device import fast_dtype
from .ema import ExponentialAverage
from .optimizers import build_optimizers
from .parallel import Workers
from .recipe import Recipe

logger = logging.getLogger(__name__)


class Dataset(Protocol):
    """Gives the parts of one step's batch. Parts may differ in kind and shape; their gradients are summed."""

    def batch(self, step: int, rng: random.Random) -> Iterable[Any]: ...


Loss = Callable[[Any, torch.Generator], tuple[Tensor, Mapping[str, float]]]
"""Maps a part of a batch and a seeded generator to its (weighted) loss and figures worth logging."""


class Trainer:
    """One run in one folder: `log.jsonl`, `recipe.json` and `checkpoint/`.

    Args:
        parameters: The parameters that move, by name. Others are left as they are, without gradients.
        dataset: Where batches come from.
        loss: What to minimise.
        recipe: How.
        folder: Where the run lives. A checkpoint found there is continued.
        hidden: Names of the matrices that Muon may take.
        on_save: Called with the step after each checkpoint, with the averaged weights in place.
        workers: This process among several. Each has a dataset that gives its share of a batch.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        dataset: Dataset,
        loss: Loss,
        recipe: Recipe,
        folder: str | Path,
        *,
        hidden: Iterable[str] = (),
        on_save: Callable[[int], Mapping[str, float] | None] | None = None,
        workers: Workers = Workers(),
    ):
        if not parameters:
            raise OmniGen2Error("No parameter was chosen for training.")
        self.parameters = dict(parameters)
        self.dataset, self.loss, self.recipe, self.on_save, self.workers = dataset, loss, recipe, on_save, workers
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizers = build_optimizers(self.parameters, recipe, hidden)
        self.average = ExponentialAverage(self.parameters) if recipe.ema else None
        self.step = 0
        if (self.checkpoint / STATE_FILE).is_file():
            averages = self.average.weights if self.average else None
            self.step = load_checkpoint(self.checkpoint, self.parameters, self.optimizers, averages)["step"]
            logger.info("continuing %s at step %d", self.folder, self.step)
        if workers.leads:
            (self.folder / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1))

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is kept."""
        return self.folder / "checkpoint"

    def run(self, until: int | None = None) -> None:
        """Trains to the end of the recipe, or to step `until`, and saves."""
        last = min(self.recipe.steps, until or self.recipe.steps)
        started, sums, count = time.monotonic(), {}, 0
        while self.step < last:
            for key, value in self._one_step().items():
                total, times = sums.get(key, (0.0, 0))
                sums[key] = (total + value, times + 1)
            count += 1
            if self.step % self.recipe.log_every == 0 or self.step == last:
                row = {key: round(total / times, 5) for key, (total, times) in sums.items()}
                row["seconds_per_step"] = round((time.monotonic() - started) / count, 4)
                self._log(row)
                started, sums, count = time.monotonic(), {}, 0
            if self.step % self.recipe.save_every == 0 or self.step == last:
                self.save()
                started = time.monotonic()

    def save(self) -> None:
        """Writes the checkpoint, then lets `on_save` look at the averaged weights."""
        if not self.workers.leads:
            return
        averages = self.average.weights if self.average else None
        save_checkpoint(self.checkpoint, self.parameters, self.optimizers, averages, {"step": self.step})
        if self.on_save:
            with self.averaged():
                figures = self.on_save(self.step)
            if figures:
                self._log(dict(figures))

    def averaged(self) -> "_Swapped":
        """A context in which the parameters hold the averaged weights."""
        return _Swapped(self.parameters, self.average.weights if self.average else {})

    def _one_step(self) -> dict[str, float]:
        recipe, step = self.recipe, self.step
        rate = recipe.rate(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
        seed = recipe.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(seed * 64 + self.workers.rank)
        figures: dict[str, float] = {}
        device = next(iter(self.parameters.values())).device.type
        bf16 = recipe.bf16 and fast_dtype(device) == torch.bfloat16
        for part in self.dataset.batch(step, random.Random(seed)):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss, part_figures = self.loss(part, generator)
            if not torch.isfinite(loss):
                raise OmniGen2Error(f"The loss became {loss.item()} at step {step}; lower the learning rate and continue from the checkpoint.")
            loss.backward()
            figures.update(part_figures)
        self.workers.sum_gradients(self.parameters.values())
        if recipe.clip:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), recipe.clip)
            figures["gradient"] = norm.item()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.parameters, recipe.ema_decay(step))
        self.step += 1
        return figures

    def _log(self, row: dict[str, Any]) -> None:
        if not self.workers.leads:
            return
        row = {"step": self.step, **row}
        logger.info("%s", json.dumps(row))
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


class _Swapped:
    def __init__(self, parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]):
        self.parameters, self.weights, self.kept = parameters, weights, {}

    @torch.no_grad()
    def __enter__(self) -> None:
        for name, tensor in self.weights.items():
            self.kept[name] = self.parameters[name].detach().clone()
            self.parameters[name].copy_(tensor)

    @torch.no_grad()
    def __exit__(self, *_) -> None:
        for name, tensor in self.kept.items():
            self.parameters[name].copy_(tensor)
