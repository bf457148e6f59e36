"""GGUF files: what they hold, and their tensors as packed weights on the mapped file.

The `gguf` package reads the file's structure; it is optional and imported when a file is read. Names of llama.cpp are
brought to the published ones (`gguf_names`). Where the metadata entry `comfy.gguf.orig_shape.<name>` is there, the
tensor was stored in another shape, so that blocks of 256 values divide it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..quantised import GGUF_FORMATS, PackedTensor
from .gguf_names import published_names
from .header import Header, TensorInfo

if TYPE_CHECKING:
    from gguf import GGUFReader

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
# Longer lists are no shapes, and are skipped.
_LONGEST_SHAPE = 16
_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_gguf_header(path: str | Path) -> Header:
    """What the GGUF file at `path` holds, under published names and in the shapes that the model has.

    Raises `CheckpointError` in one sentence without the `gguf` package, for a file that is cut short or damaged, and for
    a piece of one.
    """
    path = Path(path)
    reader = _open(path)
    names = published_names([tensor.name for tensor in reader.tensors])
    tensors = {
        names[tensor.name]: TensorInfo(tensor.tensor_type.name, _shape(reader, tensor, path), int(tensor.n_bytes))
        for tensor in reader.tensors
        if tensor.name in names
    }
    return Header(tensors, _texts(reader))


def read_gguf_tensors(path: str | Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of the GGUF file at `path`, all or those in `names`, as views of the mapped file.

    Tensors in a format of few bits are `PackedTensor`s. Raises `CheckpointError` for a format that is not read here.
    """
    path = Path(path)
    reader = _open(path)
    published = published_names([tensor.name for tensor in reader.tensors])
    wanted = None if names is None else set(names)
    state = {}
    for tensor in reader.tensors:
        name = published.get(tensor.name)
        if name is not None and (wanted is None or name in wanted):
            state[name] = _tensor(tensor, _shape(reader, tensor, path), path)
    return state


def _open(path: Path) -> GGUFReader:
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            f"{path.name} is a GGUF file, which only the Python package gguf can read, and it is not installed; run "
            f'"{sys.executable}" -m pip install gguf and restart'
        ) from error

    class Reader(gguf.GGUFReader):
        """The package's reader, which takes half a minute over the vocabulary of a language model, without that."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list, list, list]:
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, count = int(self._get(orig_offs, "<u4")[0]), int(self._get(orig_offs + 4, "<u8")[0])
            number = self.gguf_scalar_to_np.get(kind)
            if count <= _LONGEST_SHAPE or (number is None and kind != gguf.GGUFValueType.STRING):
                return super()._get_field_parts(orig_offs, raw_type)
            end = orig_offs + 12
            if number is not None:
                end += count * number().itemsize
            for _ in range(count if number is None else 0):
                end += 8 + int.from_bytes(self.data[end : end + 8].tobytes(), "little")
                if end > len(self.data):
                    break
            if end > len(self.data):
                raise ValueError("a list ends outside the file")
            return end - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]

    try:
        # "c" keeps what is written in memory and never in the file; torch wants memory that could be written.
        reader = Reader(path, "c")
        if reader.byte_order != "I":
            raise ValueError("its byte order is that of another processor")
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path.name} is cut short or damaged ({error}); download it again") from error
    pieces = reader.get_field("split.count")
    if pieces is not None and int(pieces.parts[-1][0]) > 1:
        raise CheckpointError(
            f"{path.name} is one of {int(pieces.parts[-1][0])} pieces of a model; get it as one file, or join them with "
            "llama.cpp's llama-gguf-split --merge"
        )
    return reader


def _shape(reader: GGUFReader, tensor: Any, path: Path) -> tuple[int, ...]:
    # GGUF counts dimensions from the innermost.
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    field = reader.get_field(ORIGINAL_SHAPE + tensor.name)
    if field is None:
        return shape
    original = tuple(int(field.parts[i][0]) for i in field.data)
    if math.prod(original) != math.prod(shape):
        raise CheckpointError(
            f"{path.name} is damaged: it holds {tensor.name} in shape {list(shape)} and says that its shape was "
            f"{list(original)}; download it again"
        )
    return original


def _texts(reader: GGUFReader) -> dict[str, str]:
    """The metadata entries that are texts."""
    texts = {}
    for name, field in reader.fields.items():
        if field.types and field.types[0].name == "STRING":
            texts[name] = bytes(field.parts[-1]).decode("utf-8", errors="replace")
    return texts


def _tensor(tensor: Any, shape: tuple[int, ...], path: Path) -> Tensor:
    kind = tensor.tensor_type.name
    data = torch.from_numpy(tensor.data)
    if kind in GGUF_FORMATS:
        return PackedTensor.from_blocks(data, GGUF_FORMATS[kind], shape)
    if kind not in _PLAIN:
        raise CheckpointError(
            f"{path.name} holds {tensor.name} as {kind}, which is not read here; get a file in one of "
            f"{', '.join(GGUF_FORMATS)}"
        )
    return data.view(getattr(torch, _PLAIN[kind])).reshape(shape)
