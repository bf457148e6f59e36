"""Writing GGUF and safetensors files whose data come a piece at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..checkpoints.gguf import ORIGINAL_SHAPE
from .encode import Stored

Progress = Callable[[int], None]
"""Called with the number of bytes written since the last call."""

ALIGNMENT = 32
_GGUF_VERSION = 3
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30,
}
# What llama.cpp calls a file most of whose tensors are in a format.
_FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}


def write_gguf(
    path: Path,
    tensors: Sequence[Stored],
    shapes: dict[str, tuple[int, ...]],
    metadata: dict[str, str],
    format: str,
    progress: Progress,
) -> None:
    """Write a GGUF file. shapes: of the tensors in the model, where the file has them in others."""
    with replacing(path) as file:
        file.write(gguf_head(tensors, shapes, metadata, format))
        for stored in tensors:
            _write(file, stored, progress)
            file.write(bytes(aligned(stored.size) - stored.size))


def gguf_head(
    tensors: Sequence[Stored], shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], format: str
) -> bytes:
    """What a GGUF file begins with; the tensors follow one after the other, each filled up to `aligned` bytes."""
    entries = [_entry(name, _STRING, _string(text)) for name, text in metadata.items()]
    entries.append(_entry("general.quantization_version", _UINT32, struct.pack("<I", 2)))
    entries.append(_entry("general.file_type", _UINT32, struct.pack("<I", _FILE_TYPES[format])))
    for stored in tensors:
        shape = shapes[stored.name]
        if shape != stored.shape:
            sizes = struct.pack(f"<IQ{len(shape)}i", _INT32, len(shape), *shape)
            entries.append(_entry(ORIGINAL_SHAPE + stored.name, _ARRAY, sizes))
    described, offset = [], 0
    for stored in tensors:
        dimensions = struct.pack(f"<I{len(stored.shape)}Q", len(stored.shape), *reversed(stored.shape))
        described.append(_string(stored.name) + dimensions + struct.pack("<IQ", _TYPES[stored.format], offset))
        offset += aligned(stored.size)
    head = b"GGUF" + struct.pack("<IQQ", _GGUF_VERSION, len(tensors), len(entries)) + b"".join((*entries, *described))
    return head + bytes(aligned(len(head)) - len(head))


def write_safetensors(path: Path, tensors: Sequence[Stored], metadata: dict[str, str], progress: Progress) -> None:
    """Write a safetensors file."""
    with replacing(path) as file:
        file.write(safetensors_head(tensors, metadata))
        for stored in tensors:
            _write(file, stored, progress)


def safetensors_head(tensors: Sequence[Stored], metadata: dict[str, str]) -> bytes:
    """What a safetensors file begins with; the tensors follow one after the other."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for stored in tensors:
        offsets = [offset, offset + stored.size]
        header[stored.name] = {"dtype": stored.format, "shape": list(stored.shape), "data_offsets": offsets}
        offset += stored.size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is complete, and is gone when it is not."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: BinaryIO, stored: Stored, progress: Progress) -> None:
    written = 0
    for piece in stored.pieces():
        file.write(memoryview(piece.numpy()))
        written += piece.nbytes
        progress(piece.nbytes)
    if written != stored.size:
        raise RuntimeError(f"{stored.name} took {written} bytes where {stored.size} were announced")


def _entry(name: str, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def aligned(size: int) -> int:
    """`size` bytes, filled up to where the next tensor of a GGUF file begins."""
    return -(-size // ALIGNMENT) * ALIGNMENT
