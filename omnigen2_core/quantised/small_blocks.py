"""GGUF's formats of 32 values a block: Q8_0, Q5_0, Q5_1, Q4_0, Q4_1.

A block is one scale (fp16), in the `_1` formats one smallest value (fp16), and 32 integers: value = scale * integer, plus
the smallest value. Of the 4-bit halves the first 16 values are the low ones. Q5 keeps each value's fifth bit in 4 bytes.
Sources: the format descriptions of llama.cpp and the `gguf` package, against which the tests hold both directions.

Decoders take blocks [n, bytes] uint8 and give [n, 32] fp32; encoders take [n, 32] fp32 and give blocks.
"""

import torch
from torch import Tensor

VALUES = 32
# The fields of a block that are fp16.
HALF = 2


def halves(blocks: Tensor, at: int) -> Tensor:
    """The fp16 field that starts at byte `at` of each block, [n, 1] fp32."""
    return blocks[:, at : at + HALF].contiguous().view(torch.float16).float()


def as_bytes(values: Tensor) -> Tensor:
    """fp16 values [n, 1] as they lie in a block, [n, 2] uint8."""
    return values.to(torch.float16).contiguous().view(torch.uint8)


def nibbles(packed: Tensor) -> Tensor:
    """Bytes [n, k] to 4-bit numbers [n, 2k]: all low halves, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """The fifth bit of each of 32 values, [n, 32] of 0 and 16, from the 4 bytes at `at`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    bits = (blocks[:, at : at + 4].unsqueeze(-1) >> shifts) & 1
    return bits.flatten(1) << 4


def decode_q8_0(blocks: Tensor) -> Tensor:
    """34 bytes: scale, 32 integers of int8."""
    return halves(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def decode_q4_0(blocks: Tensor) -> Tensor:
    """18 bytes: scale, 16 bytes of 4-bit integers that stand for -8 .. 7."""
    return halves(blocks, 0) * (nibbles(blocks[:, 2:]).float() - 8)


def decode_q4_1(blocks: Tensor) -> Tensor:
    """20 bytes: scale, smallest value, 16 bytes of 4-bit integers."""
    return halves(blocks, 0) * nibbles(blocks[:, 4:]).float() + halves(blocks, 2)


def decode_q5_0(blocks: Tensor) -> Tensor:
    """22 bytes: scale, 4 bytes of fifth bits, 16 bytes of the other four; the integers stand for -16 .. 15."""
    return halves(blocks, 0) * ((nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).float() - 16)


def decode_q5_1(blocks: Tensor) -> Tensor:
    """24 bytes: scale, smallest value, 4 bytes of fifth bits, 16 bytes of the other four."""
    return halves(blocks, 0) * (nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)).float() + halves(blocks, 2)


def encode_q8_0(values: Tensor) -> Tensor:
    """Blocks of 34 bytes; the value of largest magnitude becomes 127 or -127."""
    scale = values.abs().amax(1, keepdim=True) / 127
    scaled = values * inverse(scale)
    # Halves go away from zero, as the format's other writers round.
    whole = scaled.abs().floor()
    integers = scaled.sign() * (whole + (scaled.abs() - whole >= 0.5))
    return torch.cat((as_bytes(scale), integers.to(torch.int8).view(torch.uint8)), dim=1)


def encode_q4_0(values: Tensor) -> Tensor:
    """Blocks of 18 bytes; the value of largest magnitude becomes -8."""
    scale, integers = _signed(values, 8)
    return torch.cat((as_bytes(scale), _as_nibbles(integers)), dim=1)


def encode_q5_0(values: Tensor) -> Tensor:
    """Blocks of 22 bytes; the value of largest magnitude becomes -16."""
    scale, integers = _signed(values, 16)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=values.device)
    fifth = ((integers >> 4).unflatten(1, (4, 8)) * weights).sum(-1, dtype=torch.uint8)
    return torch.cat((as_bytes(scale), fifth, _as_nibbles(integers & 15)), dim=1)


def _signed(values: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Scale and integers 0 .. 2 * steps - 1, such that the value of largest magnitude becomes -steps exactly."""
    largest = values.gather(1, values.abs().argmax(1, keepdim=True))
    scale = largest / -steps
    integers = (values * inverse(scale) + (steps + 0.5)).trunc().clamp(0, 2 * steps - 1)
    return scale, integers.to(torch.uint8)


def _as_nibbles(integers: Tensor) -> Tensor:
    """The inverse of `nibbles`: [n, 2k] to [n, k]."""
    low, high = integers.chunk(2, dim=1)
    return low | (high << 4)


def inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where the scale is 0."""
    return torch.where(scale == 0, 0, 1 / scale)
