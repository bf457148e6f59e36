"""A tensor that is kept in a format of few bits and read as numbers.

It has the shape of its numbers and the size of what it is kept as. `.to(device)` moves what it is kept as; `.to(dtype)`
of a floating-point dtype gives the numbers as a plain tensor. Its own dtype reads uint8, which keeps `module.to(dtype)`
from touching it. Any other operation gets the numbers in fp32; writing into it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .formats import Format

CHUNK = 1 << 23
"""Numbers that are decoded at once: what lies between the format and the result takes several times their room."""

Change = Callable[[Tensor], Tensor]
_aten = torch.ops.aten


class PackedTensor(torch.Tensor):
    """A weight in a storage format.

    parts: what the decoder takes, such as (blocks,) or (values, scales); each holds the same share of the numbers in
        every row. format: how to decode them. shape: of the numbers.
    changes: what is done to the numbers whenever they are asked for, such as adding a LoRA.
    """

    parts: tuple[Tensor, ...]
    format: Format
    changes: tuple[Change, ...]

    # What torch calls keeps its own type: numbers are a plain tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, parts: tuple[Tensor, ...], format: Format, shape: tuple[int, ...], changes: tuple[Change, ...] = ()):
        packed = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=torch.uint8, device=parts[0].device)
        packed.parts, packed.format, packed.changes = tuple(parts), format, tuple(changes)
        return packed

    @classmethod
    def from_blocks(cls, data: Tensor, format: Format, shape: tuple[int, ...]) -> "PackedTensor":
        """Of a block format, from its bytes in any shape."""
        return cls((data.reshape(-1, format.size),), format, shape)

    @classmethod
    def from_rows(cls, values: Tensor, scale: Tensor | None, format: Format) -> "PackedTensor":
        """Of fp8 or int8 values [rows, ...] with one scale, one for each row, or none."""
        rows = len(values)
        scale = torch.ones(1) if scale is None else scale
        scale = scale.to(device=values.device, dtype=torch.float32).reshape(-1, 1).expand(rows, 1)
        return cls((values.reshape(rows, -1), scale), format, values.shape)

    def numbers(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers as a plain tensor in `dtype`, on the device that this one is on."""
        out = torch.empty(self.shape, dtype=dtype, device=self.device)
        decode_into(out.view(-1), self.parts, self.format)
        for change in self.changes:
            out = change(out)
        return out

    def rows(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of a matrix, [*indices, width]; only these are decoded where rows are kept apart."""
        rows, width = self.shape
        kept = len(self.parts[0])
        if kept % rows or self.changes:
            return self.numbers(dtype)[indices]
        chosen = indices.flatten()
        parts = tuple(part.unflatten(0, (rows, kept // rows))[chosen].flatten(0, 1) for part in self.parts)
        out = torch.empty(*indices.shape, width, dtype=dtype, device=self.device)
        decode_into(out.view(-1), parts, self.format)
        return out

    def followed_by(self, change: Change) -> "PackedTensor":
        """The same weight with a further change to its numbers; nothing is copied."""
        return PackedTensor(self.parts, self.format, self.shape, (*self.changes, change))

    @property
    def nbytes(self) -> int:
        """Bytes that it is kept in."""
        return sum(part.nbytes for part in self.parts)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"PackedTensor({self.format.name}, shape={tuple(self.shape)}, device={self.device})"

    def __deepcopy__(self, memo: dict) -> "PackedTensor":
        return self.clone()

    def _with_parts(self, change: Callable[[Tensor], Tensor]) -> "PackedTensor":
        return PackedTensor(tuple(change(part) for part in self.parts), self.format, self.shape, self.changes)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(*args, **kwargs)
        # In inference mode operations arrive that are made of others, `.to` among them.
        result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if func._schema.is_mutable and isinstance(args[0], PackedTensor):
            raise TypeError(f"{func} would write into a weight kept as {args[0].format.name}, which is only read")
        return func(*_as_numbers(args), **_as_numbers(kwargs))


def decode_into(out: Tensor, parts: tuple[Tensor, ...], format: Format) -> None:
    """Decode `parts` into the flat tensor `out`, a chunk at a time."""
    kept = len(parts[0])
    if not kept:
        return
    each = out.numel() // kept
    step = max(1, CHUNK // each)
    for start in range(0, kept, step):
        decoded = format.decode(*(part[start : start + step] for part in parts))
        out[start * each : start * each + decoded.numel()] = decoded.view(-1)


def holds_packed(state: Mapping[str, Tensor]) -> bool:
    """Whether any of the weights is kept in a storage format."""
    return any(isinstance(tensor, PackedTensor) for tensor in state.values())


def _to_copy(packed: PackedTensor, *, dtype=None, device=None, non_blocking=False, **_: Any) -> Tensor:
    if device is None or torch.device(device) == packed.device:
        # A copy is made for what would otherwise be written into, and nothing writes here.
        moved = packed if dtype is None or dtype.is_floating_point else packed._with_parts(torch.clone)
    else:
        moved = packed._with_parts(lambda part: part.to(device, non_blocking=non_blocking))
    return moved.numbers(dtype) if dtype is not None and dtype.is_floating_point else moved


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(target, PackedTensor):
        return target.copy_(_to_copy(source, device=target.device).numbers(target.dtype))
    if not isinstance(source, PackedTensor) or source.format != target.format or source.shape != target.shape:
        raise TypeError(f"a weight kept as {target.format.name} takes only another one of its shape and format")
    for mine, theirs in zip(target.parts, source.parts):
        mine.copy_(theirs, non_blocking=non_blocking)
    return target


def _empty_like(packed: PackedTensor, *, dtype=None, device=None, **_: Any) -> Tensor:
    device = device or packed.device
    if dtype is not None and dtype.is_floating_point:
        return torch.empty(packed.shape, dtype=dtype, device=device)
    return packed._with_parts(lambda part: torch.empty_like(part, device=device))


def _alias(packed: PackedTensor) -> PackedTensor:
    # torch counts the versions of an alias as it does those of its source, which inference mode would leave out.
    with torch.inference_mode(packed.is_inference()):
        return packed._with_parts(lambda part: part)


_HANDLERS = {
    _aten.detach.default: _alias,
    _aten.alias.default: _alias,
    _aten.clone.default: lambda packed, **_: packed._with_parts(torch.clone),
    _aten._to_copy.default: _to_copy,
    _aten.copy_.default: _copy,
    _aten.empty_like.default: _empty_like,
    _aten._has_compatible_shallow_copy_type.default: lambda packed, other: False,
}


def _as_numbers(value: Any) -> Any:
    if isinstance(value, PackedTensor):
        return value.numbers()
    if isinstance(value, dict):
        return {key: _as_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_as_numbers(item) for item in value)
    return value


def size_of(format: Format, shape: tuple[int, ...]) -> int:
    """Bytes that numbers of `shape` take in a block format."""
    return math.prod(shape) // format.values * format.size
