"""GGUF's formats of 256 values a block, written: Q6_K, Q5_K, Q4_K.

For each group of a block several grids are tried; for each, the scale (and smallest value) that gives the least squared
error with those integers is computed, and the best is kept. Then the scales themselves are rounded to the integers that
the block stores, and the values are rounded once more to the grid that results.

Encoders take values [n, 256] fp32 and give blocks [n, bytes] uint8, in the layouts of llama.cpp that `k_blocks` reads.
"""

import torch
from torch import Tensor

from .k_blocks import join_scales
from .small_blocks import as_bytes, inverse

# How much finer or coarser than the plain grid, in steps of it, the grids are that are tried.
_TRIED = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)


def encode_q4_k(values: Tensor) -> Tensor:
    """Blocks of 144 bytes, as `decode_q4_k` reads them."""
    scales, integers = _with_smallest(values, 15)
    return torch.cat((scales, _nibble_planes(integers)), dim=1)


def encode_q5_k(values: Tensor) -> Tensor:
    """Blocks of 176 bytes, as `decode_q5_k` reads them."""
    scales, integers = _with_smallest(values, 31)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=values.device).unsqueeze(-1)
    fifth = ((integers >> 4) * weights).sum(1, dtype=torch.uint8)
    return torch.cat((scales, fifth, _nibble_planes(integers & 15)), dim=1)


def encode_q6_k(values: Tensor) -> Tensor:
    """Blocks of 210 bytes, as `decode_q6_k` reads them."""
    groups = values.unflatten(1, (16, 16))
    scale = _best_symmetric(groups, 32)
    # The scale of largest magnitude becomes -128, so that the range of a signed byte is used.
    largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    block_scale = (largest / -128).to(torch.float16).float()
    stored = (scale * inverse(block_scale)).round().clamp(-128, 127)
    integers = (groups * inverse(block_scale * stored).unsqueeze(-1)).round().clamp(-32, 31) + 32
    integers = integers.to(torch.uint8).reshape(-1, 2, 4, 32)
    low, high = integers & 15, integers >> 4
    low = low[:, :, :2] | (low[:, :, 2:] << 4)
    weights = 1 << torch.arange(0, 8, 2, dtype=torch.uint8, device=values.device).unsqueeze(-1)
    high = (high * weights).sum(2, dtype=torch.uint8)
    scales = stored.to(torch.int8).view(torch.uint8)
    return torch.cat((low.flatten(1), high.flatten(1), scales, as_bytes(block_scale)), dim=1)


def _nibble_planes(integers: Tensor) -> Tensor:
    """[n, 8, 32] of 4 bits: each pair of groups in one plane of 32 bytes."""
    return (integers[:, 0::2] | (integers[:, 1::2] << 4)).flatten(1)


def _with_smallest(values: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The head of Q4_K and Q5_K blocks [n, 16] and the integers [n, 8, 32]."""
    groups = values.unflatten(1, (8, 32))
    scale, offset = _best_with_offset(groups, steps)
    block_scale = (scale.amax(1, keepdim=True) / 63).to(torch.float16).float()
    block_offset = (offset.amax(1, keepdim=True) / 63).to(torch.float16).float()
    scales = (scale * inverse(block_scale)).round().clamp(0, 63)
    offsets = (offset * inverse(block_offset)).round().clamp(0, 63)
    shifted = groups + (block_offset * offsets).unsqueeze(-1)
    integers = (shifted * inverse(block_scale * scales).unsqueeze(-1)).round().clamp(0, steps)
    joined = join_scales(scales.to(torch.uint8), offsets.to(torch.uint8))
    return torch.cat((as_bytes(block_scale), as_bytes(block_offset), joined), dim=1), integers.to(torch.uint8)


def _best_with_offset(groups: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Scale and offset [n, g], both at least 0, of values = scale * integer - offset, integers 0 .. steps."""
    count = groups.shape[-1]
    smallest = groups.amin(-1).clamp_max(0)
    span = groups.amax(-1) - smallest
    best_scale, best_offset = span / steps, -smallest
    least = torch.full_like(span, torch.inf)
    total = groups.sum(-1)
    for change in _TRIED:
        finer = ((steps + change) * inverse(span)).unsqueeze(-1)
        integers = ((groups - smallest.unsqueeze(-1)) * finer).round().clamp(0, steps)
        products, squares, ones = (groups * integers).sum(-1), integers.square().sum(-1), integers.sum(-1)
        # The least squares of a line through (integer, value); an offset that would lift the values becomes none.
        spread = count * squares - ones.square()
        scale = (count * products - ones * total) * inverse(spread)
        offset = (ones * products - squares * total) * inverse(spread)
        lifted = offset < 0
        scale = torch.where(lifted, products * inverse(squares), scale)
        offset = torch.where(lifted, 0, offset)
        error = (scale.unsqueeze(-1) * integers - offset.unsqueeze(-1) - groups).square().sum(-1)
        better = (error < least) & (scale > 0)
        least = torch.where(better, error, least)
        best_scale, best_offset = torch.where(better, scale, best_scale), torch.where(better, offset, best_offset)
    return best_scale, best_offset


def _best_symmetric(groups: Tensor, steps: int) -> Tensor:
    """Scale [n, g] of values = scale * integer, integers -steps .. steps - 1; its sign is that which fits better."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best_scale = largest.squeeze(-1) / -steps
    # What the squared error loses with the best scale for the integers; the most is best.
    gained = torch.full_like(best_scale, -1.0)
    for change in _TRIED:
        integers = (groups * (-(steps + change) * inverse(largest))).round().clamp(-steps, steps - 1)
        products, squares = (groups * integers).sum(-1), integers.square().sum(-1)
        scale = products * inverse(squares)
        better = products * scale > gained
        gained = torch.where(better, products * scale, gained)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale
