"""What each storage format costs in exactness at real width: one layer, written, read back and run."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..checkpoints import CONFIG_KEY
from ..convert.errors import measure as measure_errors
from ..convert.mix import FORMATS
from ..convert.source import source_of_file
from ..transformer import OmniGen2Config
from .inputs import random_weights
from .results import FormatRow, Results


def measure(results: Results, config: OmniGen2Config = OmniGen2Config()) -> None:
    """Adds a row for each format: a transformer of one layer, drawn weights in bf16, against its converted file."""
    config = replace(config, num_layers=1, num_refiner_layers=0)
    with tempfile.TemporaryDirectory(prefix="omnigen2-") as folder:
        path = Path(folder) / "layer.safetensors"
        weights = random_weights(config, torch.bfloat16, torch.device("cpu"))
        save_file(weights, path, metadata={CONFIG_KEY: json.dumps(asdict(config))})
        del weights
        for format in FORMATS:
            found = measure_errors(source_of_file(path), format)
            results.formats.append(FormatRow(format, found.bits, 100 * found.weights, 100 * found.output))
