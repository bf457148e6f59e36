"""Reading the header of a safetensors file (of a GGUF file: `gguf`), and saying what a file is that has none.

A safetensors file is 8 bytes (little-endian length N), N bytes of JSON (name -> dtype, shape, data_offsets; plus an
optional `__metadata__` of strings), then the data. Nothing here reads the data.
"""

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError

GGUF_MAGIC = b"GGUF"
_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000

# The format's name of a dtype -> ours, and bytes per element.
_DTYPES = {
    "F64": ("fp64", 8),
    "F32": ("fp32", 4),
    "F16": ("fp16", 2),
    "BF16": ("bf16", 2),
    "F8_E4M3": ("fp8_e4m3fn", 1),
    "F8_E5M2": ("fp8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}

_PICKLE = "is a pickled PyTorch file, which could run code and is never loaded; get the .safetensors version of it"
_WEB_PAGE = "is a web page saved under the name of a model; download the file itself (the link may need a login)"
_MAGIC = (
    (b"PK\x03\x04", _PICKLE),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer of a few bytes, not the weights; download the file itself (git lfs pull)",
    ),
    (b"<!doctype", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b'{"error', "is an error message saved under the name of a model; download the file again"),
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it; `dtype` is the format's own name (`BF16`, `F8_E4M3`, ...)."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Header:
    """What a weights file (or the shards of one model together) contains."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of tensor `name`, None if there is no such tensor."""
        info = self.tensors.get(name)
        return info.shape if info else None

    @property
    def dtype(self) -> str:
        """The dtype that holds most of the bytes: `bf16`, `fp16`, `fp32`, `fp8_e4m3fn`, ..."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
        if not sizes:
            return "none"
        largest = max(sizes, key=sizes.get)
        return _DTYPES[largest][0] if largest in _DTYPES else largest


def read_header(path: str | Path) -> Header:
    """Read and check the header of the safetensors or GGUF file at `path`.

    Raises `CheckpointError` in one sentence if the file is missing, empty, a pickle, a web page, an LFS pointer, or
    shorter or longer than its header says.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path.name} is a folder, a .safetensors file was expected; folders go into models/diffusers/ and are "
            "loaded with OmniGen2 Load Folder"
        )
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; check the name, or download it")
    if is_gguf(path):
        from .gguf import read_gguf_header

        return read_gguf_header(path)
    file_size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        _refuse_other_formats(path, start, file_size)
        (length,) = struct.unpack("<Q", start[:_LENGTH_BYTES])
        if length > _LARGEST_HEADER or start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
            raise CheckpointError(
                f"{path.name} is not a safetensors file (it does not begin with a header); get the .safetensors "
                "version of it"
            )
        if _LENGTH_BYTES + length > file_size:
            raise CheckpointError(f"{path.name} is truncated inside its header ({file_size} bytes); download it again")
        file.seek(_LENGTH_BYTES)
        raw = file.read(length)
    header, data_size = _parse(path, raw)
    expected = _LENGTH_BYTES + length + data_size
    if file_size < expected:
        raise CheckpointError(f"{path.name} is truncated: it has {file_size} of {expected} bytes; download it again")
    if file_size > expected:
        raise CheckpointError(
            f"{path.name} is damaged: it has {file_size} bytes where its header describes {expected}; download it again"
        )
    return header


def is_gguf(path: str | Path) -> bool:
    """Whether the file at `path` begins as a GGUF file does, whatever its name."""
    with Path(path).open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _refuse_other_formats(path: Path, start: bytes, file_size: int) -> None:
    if file_size == 0:
        raise CheckpointError(f"{path.name} is empty; download it again")
    opening = start.lstrip().lower()
    for magic, sentence in _MAGIC:
        if start.startswith(magic) or opening.startswith(magic.lower()):
            raise CheckpointError(f"{path.name} {sentence}")
    if file_size < _LENGTH_BYTES + 2:
        raise CheckpointError(f"{path.name} is truncated ({file_size} bytes); download it again")


def _parse(path: Path, raw: bytes) -> tuple[Header, int]:
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        tensors, end = {}, 0
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), last - first)
            end = max(end, last)
            width = _DTYPES[entry["dtype"]][1] if entry["dtype"] in _DTYPES else None
            if last < first or (width and last - first != width * math.prod(entry["shape"])):
                raise ValueError(f"the size of {name} does not fit its shape")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} has a damaged safetensors header ({error}); download it again") from error
    return Header(tensors, metadata), end
