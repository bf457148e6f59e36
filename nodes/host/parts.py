"""One part of a model (transformer, encoder or VAE) as it lies on disk: in a single file or in the authors' folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import comfy.utils

from ...omnigen2_core.checkpoints import (
    FileInfo,
    FileKind,
    ModelFolder,
    SingleFile,
    is_gguf,
    read_tensors,
    vae_to_diffusers,
)
from ...omnigen2_core.errors import CheckpointError
from ...omnigen2_core.profile import ModelProfile

_QUANTISED = "_quantization_metadata"


@dataclass(frozen=True)
class Part:
    """What to build and from which files; weights are mapped when `weights` is called and read as they are used.

    source: how messages name it. files: safetensors, or one GGUF file. config: the part's config.json, or what a single file
    has in its place. folder: the model folder it is part of, None for a single file.
    """

    source: str
    files: tuple[Path, ...]
    info: FileInfo
    config: dict[str, Any]
    profile: ModelProfile
    folder: ModelFolder | None = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors by the names that the part has in its own folder, whatever stood before them in a single file.

        GGUF's formats of few bits come as `PackedTensor`s.
        """
        state: dict[str, torch.Tensor] = {}
        for file in self.files:
            read = read_tensors if is_gguf(file) else comfy.utils.load_torch_file
            state.update(read(str(file)))
        prefix = self.info.prefix
        state = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        return vae_to_diffusers(state) if self.info.kind is FileKind.VAE else state

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of all files together; what is said there of quantised layers, by `weights`' names."""
        described = self.info.embedded(_QUANTISED)
        if described is None:
            return self.info.header.metadata
        layers = {name.removeprefix(self.info.prefix): how for name, how in described.get("layers", {}).items()}
        return {**self.info.header.metadata, _QUANTISED: json.dumps({**described, "layers": layers})}


def part_of_file(path: str | Path, kind: FileKind) -> Part:
    """The part that a single file holds. Raises CheckpointError, naming what the file is, unless it is of `kind`."""
    file = SingleFile(path, kind)
    if not is_gguf(file.path) and file.path.suffix.lower() not in (".safetensors", ".sft"):
        raise CheckpointError(
            f"{file.path.name} is a safetensors file under another ending, which ComfyUI would read as a pickle; rename "
            f"it to {file.path.stem}.safetensors"
        )
    return Part(file.path.name, (file.path,), file.info, file.config, file.profile)


def part_of_folder(path: str | Path, part: str) -> Part:
    """The part `transformer`, `vae` or `mllm` of a folder. Raises CheckpointError for missing or foreign files."""
    folder = ModelFolder(path)
    info = folder.info(part)
    return Part(
        f"{part}/ of {folder.name}", tuple(folder.weight_files(part)), info, folder.config(part), folder.profile, folder
    )
