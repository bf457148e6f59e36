"""Resumable checkpoints: safetensors for tensors, JSON for the rest, replaced as one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Mapping

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import CheckpointError

STATE_FILE = "state.json"


def _optimizer_tensors(optimizers, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    tensors = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"{names[parameter]}|{key}"] = value.detach().contiguous()
    return tensors


def save_checkpoint(
    folder: str | Path,
    parameters: Mapping[str, nn.Parameter],
    optimizers,
    averages: Mapping[str, Tensor] | None,
    state: Mapping[str, Any],
) -> None:
    """Writes weights, averages, optimiser state and `state` (JSON-ready) to `folder`, replacing what was there."""
    folder = Path(folder)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, fresh / "weights.safetensors")
    if averages:
        save_file({name: tensor.contiguous() for name, tensor in averages.items()}, fresh / "averages.safetensors")
    names = {p: name for name, p in parameters.items()}
    save_file(_optimizer_tensors(optimizers, names), fresh / "optimizer.safetensors")
    (fresh / STATE_FILE).write_text(json.dumps(state, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


@torch.no_grad()
def load_checkpoint(
    folder: str | Path, parameters: Mapping[str, nn.Parameter], optimizers=(), averages: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Restores in place what `save_checkpoint` wrote and returns its `state`.

    Raises:
        CheckpointError: The folder lacks a file or its parameters are not these.
    """
    folder = Path(folder)
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} holds no training checkpoint ({STATE_FILE} is missing).")
    weights = load_file(folder / "weights.safetensors")
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))[0]
        raise CheckpointError(f"The checkpoint in {folder} is of other parameters (for example {odd}); start a new run folder.")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
    if averages is not None and (folder / "averages.safetensors").is_file():
        for name, tensor in load_file(folder / "averages.safetensors").items():
            averages[name].copy_(tensor)
    owners = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            owners.update({id(p): optimizer for p in group["params"]})
    if owners:
        for key, tensor in load_file(folder / "optimizer.safetensors").items():
            name, field = key.rsplit("|", 1)
            parameter = parameters[name]
            owners[id(parameter)].state[parameter][field] = tensor
    return json.loads((folder / STATE_FILE).read_text())
