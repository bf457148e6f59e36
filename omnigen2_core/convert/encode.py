"""A source's tensors in their chosen formats, as bytes, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoints import FP8_FORMAT, INT8_FORMAT, quantisation_note
from ..quantised.tensor import size_of
from .mix import Choice
from .source import Source

FP8_LARGEST = torch.finfo(torch.float8_e4m3fn).max
INT8_LARGEST = 127
_WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
_PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Stored:
    """One tensor of the file to be written: its format's name, shape and size, and what gives its bytes."""

    name: str
    format: str
    shape: tuple[int, ...]
    size: int
    pieces: Callable[[], Iterator[Tensor]]


def stored_size(choice: Choice, count: int) -> int:
    """Bytes that `count` numbers take, without scales that are tensors of their own."""
    if choice.block is not None:
        return size_of(choice.block, choice.shape)
    return count * _WIDTHS.get(choice.format, 1)


def encode(source: Source, name: str, choice: Choice) -> list[Stored]:
    """The tensors that `name` becomes: itself, and for fp8 and int8 its scale and ComfyUI's note of the format."""
    if choice.format in ("fp8", "int8"):
        return _fp8(source, name) if choice.format == "fp8" else _int8(source, name)
    size = stored_size(choice, torch.Size(choice.shape).numel())
    make = _blocks if choice.block is not None else _plain
    return [Stored(name, choice.format, choice.shape, size, lambda: make(source, name, choice))]


def _plain(source: Source, name: str, choice: Choice) -> Iterator[Tensor]:
    for piece in source.pieces(name):
        yield _bytes(piece.to(_PLAIN[choice.format]))


def _blocks(source: Source, name: str, choice: Choice) -> Iterator[Tensor]:
    values, rest = choice.block.values, torch.empty(0)
    for piece in source.pieces(name):
        # Pieces end with a row, blocks need not.
        flat = torch.cat((rest, piece.float().flatten()))
        whole = len(flat) // values * values
        if whole:
            yield choice.block.encode(flat[:whole].view(-1, values)).flatten()
        rest = flat[whole:]


def _fp8(source: Source, name: str) -> list[Stored]:
    shape = source.tensors[name].shape
    scale: list[Tensor] = []

    def values() -> Iterator[Tensor]:
        # As a number: small tensors between the pieces would keep their memory from being used again.
        largest = max((piece.abs().amax().item() for piece in source.pieces(name)), default=0.0)
        scale.append((torch.tensor(largest) / FP8_LARGEST).clamp_min(1e-12))
        for piece in source.pieces(name):
            yield _bytes((piece.float() / scale[0]).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn))

    def scales() -> Iterator[Tensor]:
        yield _bytes(scale[0].reshape(1))

    stored = Stored(name, "F8_E4M3", shape, torch.Size(shape).numel(), values)
    return [stored, *_beside(name, FP8_FORMAT, (), scales)]


def _int8(source: Source, name: str) -> list[Stored]:
    shape = source.tensors[name].shape
    kept: list[Tensor] = []

    def values() -> Iterator[Tensor]:
        # In one tensor from the start, for the same reason.
        kept.append(torch.empty(shape[0], 1))
        row = 0
        for piece in source.pieces(name):
            numbers = piece.float()
            scale = kept[0][row : row + len(numbers)]
            scale.copy_((numbers.abs().amax(1, keepdim=True) / INT8_LARGEST).clamp_min(1e-12))
            row += len(numbers)
            yield _bytes((numbers / scale).round().clamp(-INT8_LARGEST, INT8_LARGEST).to(torch.int8))

    def scales() -> Iterator[Tensor]:
        yield _bytes(kept.pop())

    stored = Stored(name, "I8", shape, torch.Size(shape).numel(), values)
    return [stored, *_beside(name, INT8_FORMAT, (shape[0], 1), scales)]


def _beside(name: str, format: str, shape: tuple[int, ...], scales: Callable[[], Iterator[Tensor]]) -> list[Stored]:
    """A matrix's scale and note, which follow it in the file: the scale is known when the matrix is written."""
    layer = name.removesuffix(".weight")
    note = quantisation_note(format)
    return [
        Stored(f"{layer}.weight_scale", "F32", shape, 4 * torch.Size(shape).numel(), scales),
        Stored(f"{layer}.comfy_quant", "U8", tuple(note.shape), note.nbytes, lambda: iter([note])),
    ]


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().flatten().view(torch.uint8)
