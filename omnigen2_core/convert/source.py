"""What is converted: a part of a model folder, or a single file, read a piece at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoints import CONFIG_KEY, PROFILE_KEY, FileInfo, FileKind, ModelFolder, identify, is_gguf
from ..checkpoints.header import TensorInfo, read_header
from ..checkpoints.published import PUBLISHED_MLLM
from ..errors import CheckpointError

PIECE = 1 << 20
"""Numbers that are read at once."""
KINDS = {"transformer": FileKind.DIT, "mllm": FileKind.ENCODER}
"""Parts that can be converted."""
_PLAIN = ("BF16", "F16", "F32")
_OUTPUT = "lm_head.weight"
_EMBEDDINGS = {"model.embed_tokens.weight", "model.language_model.embed_tokens.weight"}


class Source:
    """A part's tensors by published name. Nothing is read until `pieces` is called. An encoder's output table is left out
    where it is its vocabulary once more.

    Attributes: `part` (a key of `KINDS`), `name` for messages, `tensors`, and `metadata` (config and profile as texts,
    where there are any).
    """

    def __init__(self, part: str, name: str, files: Mapping[Path, FileInfo], metadata: dict[str, str]):
        self.part, self.name, self.metadata = part, name, metadata
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        for path, info in files.items():
            for full, tensor in info.header.tensors.items():
                if full.startswith(info.prefix):
                    short = full[len(info.prefix) :]
                    self.tensors[short] = tensor
                    self._places[short] = path, full
        if part == "mllm" and _EMBEDDINGS & self.tensors.keys() and _tied(metadata):
            self.tensors.pop(_OUTPUT, None)
        for short, tensor in self.tensors.items():
            if tensor.dtype not in _PLAIN:
                raise CheckpointError(
                    f"{name} holds {short} as {tensor.dtype}, so it was made smaller before; convert the bf16, fp16 or "
                    "fp32 weights"
                )

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The tensor `name` in pieces of whole rows (what its first dimension counts), in its own dtype."""
        path, full = self._places[name]
        shape = self.tensors[name].shape
        with safe_open(str(path), framework="pt", device="cpu") as file:
            if not shape or not shape[0]:
                yield file.get_tensor(full)
                return
            rows = file.get_slice(full)
            step = max(1, PIECE // max(1, torch.Size(shape[1:]).numel()))
            for start in range(0, shape[0], step):
                yield rows[start : start + step]


def source_of_folder(folder: ModelFolder, part: str) -> Source:
    """The part of a model folder."""
    paths = _plain_files(folder, part)
    info = folder.info(part)
    files = {path: FileInfo(path, info.kind, info.what, "", read_header(path)) for path in paths}
    metadata = {CONFIG_KEY: json.dumps(folder.config(part)), PROFILE_KEY: json.dumps(folder.profile.to_dict())}
    return Source(part, f"{part}/ of {folder.name}", files, metadata)


def source_of_file(path: Path) -> Source:
    """A single file, which says itself what it is."""
    if is_gguf(path):
        raise CheckpointError(f"{path.name} is a GGUF file, so it was made smaller before; convert the fp16 weights")
    info = identify(path)
    for part, kind in KINDS.items():
        if info.kind is kind:
            metadata = {key: info.header.metadata[key] for key in (CONFIG_KEY, PROFILE_KEY) if key in info.header.metadata}
            return Source(part, path.name, {path: info}, metadata)
    raise CheckpointError(
        f"{path.name} is {info.what}; only OmniGen2's diffusion model and its Qwen2.5-VL-3B encoder are converted"
    )


def _tied(metadata: Mapping[str, str]) -> bool:
    config = json.loads(metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else PUBLISHED_MLLM
    return config.get("tie_word_embeddings", False)


def _plain_files(folder: ModelFolder, part: str) -> list[Path]:
    files = folder.weight_files(part)
    for path in files:
        if is_gguf(path):
            raise CheckpointError(
                f"{part}/ of {folder.name} is a GGUF file, so it was made smaller before; convert the authors' folder"
            )
    return files
