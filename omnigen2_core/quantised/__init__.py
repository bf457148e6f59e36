"""Weights kept in few bits: the formats, a tensor that is kept in one, and layers that compute with such tensors."""

from .formats import FP8, GGUF_FORMATS, INT8, Format
from .operations import operations_for, packed_operations, unpack_elsewhere
from .tensor import PackedTensor, holds_packed

__all__ = [
    "FP8",
    "GGUF_FORMATS",
    "INT8",
    "Format",
    "PackedTensor",
    "holds_packed",
    "operations_for",
    "packed_operations",
    "unpack_elsewhere",
]
