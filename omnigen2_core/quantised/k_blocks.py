"""GGUF's formats of 256 values a block, read: Q6_K, Q5_K, Q4_K, Q3_K, Q2_K.

A block is cut into groups of 16 or 32 values. Each group has a scale, in some formats a smallest value too, as small
integers; one or two fp16 numbers for the block turn those into what values are made with. Values lie in planes: the
first bits of 128 values, then those of the next 128, and so on.
Source: the format description of llama.cpp; the tests hold every decoder against the `gguf` package's.

Decoders take blocks [n, bytes] uint8 and give [n, 256] fp32.
"""

import torch
from torch import Tensor

from .small_blocks import halves

VALUES = 256
SCALE_BYTES = 12


def planes(packed: Tensor, bits: int, width: int = 32) -> Tensor:
    """Numbers of `bits` bits from bytes [n, k]: of every `width` bytes first all lowest numbers, then all next ones.

    Gives [n, groups, width] with 8 / bits groups for every `width` bytes.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device).unsqueeze(-1)
    split = packed.unflatten(1, (-1, 1, width)) >> shifts
    return (split & ((1 << bits) - 1)).flatten(1, 2)


def split_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight smallest values of 6 bits each, [n, 8], from the 12 bytes of Q4_K and Q5_K.

    Four bytes hold the low scales, four the low smallest values and, in their upper two bits, the upper bits of the
    other four of each, whose lower bits share the last four bytes.
    """
    first, second, shared = packed.chunk(3, dim=1)
    scales = torch.cat((first & 63, (shared & 15) | (first >> 6 << 4)), dim=1)
    smallest = torch.cat((second & 63, (shared >> 4) | (second >> 6 << 4)), dim=1)
    return scales, smallest


def join_scales(scales: Tensor, smallest: Tensor) -> Tensor:
    """The inverse of `split_scales`."""
    low_scales, high_scales = scales.chunk(2, dim=1)
    low_smallest, high_smallest = smallest.chunk(2, dim=1)
    first = low_scales | (high_scales >> 4 << 6)
    second = low_smallest | (high_smallest >> 4 << 6)
    return torch.cat((first, second, (high_scales & 15) | ((high_smallest & 15) << 4)), dim=1)


def decode_q4_k(blocks: Tensor) -> Tensor:
    """144 bytes: scale, smallest value (both fp16), 12 bytes of `split_scales`, 4 bits a value."""
    return _with_smallest(blocks, planes(blocks[:, 4 + SCALE_BYTES :], 4))


def decode_q5_k(blocks: Tensor) -> Tensor:
    """176 bytes: as Q4_K, with the fifth bit of each value in 32 bytes before the others."""
    start = 4 + SCALE_BYTES
    fifth = planes(blocks[:, start : start + 32], 1)
    return _with_smallest(blocks, planes(blocks[:, start + 32 :], 4) | (fifth << 4))


def _with_smallest(blocks: Tensor, integers: Tensor) -> Tensor:
    """Values [n, 256] of Q4_K and Q5_K from their integers [n, 8, 32] and the head of their blocks."""
    scales, smallest = split_scales(blocks[:, 4 : 4 + SCALE_BYTES])
    scale = (halves(blocks, 0) * scales.float()).unsqueeze(-1)
    offset = (halves(blocks, 2) * smallest.float()).unsqueeze(-1)
    return (scale * integers.float() - offset).flatten(1)


def decode_q6_k(blocks: Tensor) -> Tensor:
    """210 bytes: 4 low bits and 2 high bits a value (128 and 64 bytes), 16 scales of int8, the block's scale in fp16."""
    low = planes(blocks[:, :128], 4, width=64).flatten(1)
    high = planes(blocks[:, 128:192], 2).flatten(1)
    integers = (low | (high << 4)).float() - 32
    scale = halves(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return (scale.unsqueeze(-1) * integers.unflatten(1, (16, 16))).flatten(1)


def decode_q3_k(blocks: Tensor) -> Tensor:
    """110 bytes: third bits (32 bytes), 2 low bits a value (64 bytes), 16 scales of 6 bits, the block's scale in fp16."""
    # A value's third bit takes 4 away where it is not set.
    third = planes(blocks[:, :32], 1).flatten(1)
    integers = planes(blocks[:, 32:96], 2).flatten(1).float() - 4 * (1 - third.float())
    packed = blocks[:, 96:108]
    low = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), dim=1)
    high = planes(packed[:, 8:], 2, width=4).flatten(1)
    scale = halves(blocks, 108) * ((low | (high << 4)).float() - 32)
    return (scale.unsqueeze(-1) * integers.unflatten(1, (16, 16))).flatten(1)


def decode_q2_k(blocks: Tensor) -> Tensor:
    """84 bytes: 16 scales and smallest values of 4 bits, 2 bits a value (64 bytes), the block's two fp16 factors of those."""
    scales = blocks[:, :16]
    integers = planes(blocks[:, 16:80], 2).flatten(1).float().unflatten(1, (16, 16))
    scale = (halves(blocks, 80) * (scales & 15).float()).unsqueeze(-1)
    offset = (halves(blocks, 82) * (scales >> 4).float()).unsqueeze(-1)
    return (scale * integers - offset).flatten(1)
