"""All parts of a golden folder, in order."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import torch

from .autoencoder import replay_autoencoder
from .core_model import CoreModel, replay_inner_values
from .dit import replay_velocities
from .encoder import replay_encoder
from .folder import GoldenFolder, MissingPart
from .lora import replay_lora
from .report import Row
from .shapes import replay_shapes
from .tables import replay_pixels, replay_schedules, replay_sizes
from .texts import replay_texts
from .trajectories import replay_trajectories
from .vision import replay_vision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """Where and how a folder is replayed.

    Attributes:
        device, dtype: Of the networks; tables, texts and pictures do not depend on them.
        tokenizer: Folder with Qwen2.5's tokenizer files, None to leave token ids out.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    tokenizer: Path | None = None


def replay_folder(path: str | Path, setup: Setup = Setup()) -> Iterator[Row]:
    """Replay every part of the folder at `path` through this package.

    A part whose files are missing gives one row that says so. A part that ends in an error gives a failed row.
    """
    folder = GoldenFolder(path)
    device, dtype = setup.device, setup.dtype
    model = CoreModel(device, dtype)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "schedule": lambda: replay_schedules(folder),
        "sizes": lambda: replay_sizes(folder),
        "pixels": lambda: replay_pixels(folder),
        "shapes": lambda: replay_shapes(folder),
        "prompts": lambda: replay_texts(folder, setup.tokenizer),
        "vision": lambda: replay_vision(folder),
        "encoder": lambda: replay_encoder(folder, device, dtype),
        "vae": lambda: replay_autoencoder(folder, device, dtype),
        "dit": lambda: replay_velocities(folder, model, dtype),
        "dit inner": lambda: replay_inner_values(folder, model),
        "lora": lambda: replay_lora(folder, model, dtype),
        "sampling": lambda: replay_trajectories(folder, model, dtype),
    }
    for name, replay in parts.items():
        yield from replay_part(name, replay)


def replay_part(name: str, replay: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of one part; what it lacks or where it breaks becomes a row too."""
    empty = True
    try:
        with torch.inference_mode():
            for row in replay():
                empty = False
                yield row
        if empty:
            yield Row(name, "all", None, note="no cases in this folder")
    except MissingPart as reason:
        yield Row(name, "all", None, note=str(reason))
    except Exception as error:  # one broken part must not hide the others
        logger.exception("%s could not be replayed", name)
        yield Row(name, "all", False, note=f"{type(error).__name__}: {error}")
