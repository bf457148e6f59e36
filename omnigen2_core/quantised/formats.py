"""The formats in which a weight can be kept in few bits: their names, sizes and decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import k_blocks, k_encoders, small_blocks


@dataclass(frozen=True)
class Format:
    """A format of storage.

    Blocks of `values` values take `size` bytes each. decode: what a tensor is kept as, such as blocks [n, size] uint8,
    to values [n, values] fp32. encode: the way back, None for formats that are only read.
    """

    name: str
    values: int
    size: int
    decode: Callable[..., Tensor]
    encode: Callable[[Tensor], Tensor] | None = None

    @property
    def bits(self) -> float:
        """Bits that a value takes, scales included."""
        return 8 * self.size / self.values


def decode_rows(values: Tensor, scale: Tensor) -> Tensor:
    """fp8 or int8 values [n, width] with a scale for each row [n, 1] (fp32) to fp32."""
    return values.float() * scale


_SMALL, _LARGE = small_blocks.VALUES, k_blocks.VALUES
GGUF_FORMATS = {
    entry.name: entry
    for entry in (
        Format("Q8_0", _SMALL, 34, small_blocks.decode_q8_0, small_blocks.encode_q8_0),
        Format("Q6_K", _LARGE, 210, k_blocks.decode_q6_k, k_encoders.encode_q6_k),
        Format("Q5_K", _LARGE, 176, k_blocks.decode_q5_k, k_encoders.encode_q5_k),
        Format("Q5_1", _SMALL, 24, small_blocks.decode_q5_1),
        Format("Q5_0", _SMALL, 22, small_blocks.decode_q5_0, small_blocks.encode_q5_0),
        Format("Q4_K", _LARGE, 144, k_blocks.decode_q4_k, k_encoders.encode_q4_k),
        Format("Q4_1", _SMALL, 20, small_blocks.decode_q4_1),
        Format("Q4_0", _SMALL, 18, small_blocks.decode_q4_0, small_blocks.encode_q4_0),
        Format("Q3_K", _LARGE, 110, k_blocks.decode_q3_k),
        Format("Q2_K", _LARGE, 84, k_blocks.decode_q2_k),
    )
}
"""By the names that GGUF gives them."""

FP8 = Format("fp8", 1, 1, decode_rows)
"""One byte a value (e4m3 or e5m2), with a scale for the tensor or for each row."""
INT8 = Format("int8", 1, 1, decode_rows)
"""One signed byte a value, with a scale for the tensor or for each row."""
