"""A folder of golden data: JSON files that name the cases, safetensors files that hold them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints import read_tensors
from ..errors import CheckpointError


class MissingPart(Exception):
    """The folder lacks a file that a part needs; the part is listed and not replayed."""


class NotReplayed(Exception):
    """A case that cannot be replayed here, for the reason given; it is listed and does not count."""


class GoldenFolder:
    """Access to the files of one folder by their names without suffix."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path} is no folder; give the folder that holds the golden data.")
        self.json = cache(self._json)
        self.tensors = cache(self._tensors)

    def _json(self, name: str) -> Any:
        path = self._file(f"{name}.json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path.name} is no valid JSON ({error}).") from error

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self._file(f"{name}.safetensors"))

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise MissingPart(f"{name} is not in this folder")
        return path


def named(tensors: dict[str, Tensor], case: str, separator: str = "/") -> dict[str, Tensor]:
    """The tensors of one case, without its name in front."""
    prefix = case + separator
    return {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
