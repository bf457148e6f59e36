"""Omni-RoPE: position ids of the joint sequence and their rotation tables.

Every token has three ids (sequence, row, column). Text tokens count along all three; each image keeps one
sequence id for all its patches, and its rows and columns restart at 0 (OmniGen2 paper, section 3.2).
Angles are computed from the ids directly, so no length limit exists. They are built in float64 on the CPU and
reach the compute device as float32 cosines and sines. No graphics card sees float64 or complex numbers, which MPS does
not have; a CPU that computes in fp32 turns heads as complex numbers, because that is faster there (`inference`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

THETA = 10000.0
Grid = tuple[int, int]
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SampleLayout:
    """Where one sample's tokens lie in the joint sequence: text, then each reference, then the image.

    text_length: text tokens. references, image: (rows, columns) of 2x2 patches.
    """

    text_length: int
    references: tuple[Grid, ...]
    image: Grid

    @property
    def reference_starts(self) -> tuple[int, ...]:
        starts, at = [], self.text_length
        for rows, columns in self.references:
            starts.append(at)
            at += rows * columns
        return tuple(starts)

    @property
    def image_start(self) -> int:
        return self.text_length + sum(rows * columns for rows, columns in self.references)

    @property
    def image_tokens(self) -> int:
        return self.image[0] * self.image[1]

    @property
    def length(self) -> int:
        return self.image_start + self.image_tokens


def position_ids(layout: SampleLayout) -> Tensor:
    """Ids [S, 3] (sequence, row, column; int64, CPU) of one sample's joint sequence.

    The sequence id starts at the text's length and grows by max(rows, columns) after each reference.
    """
    parts = [torch.arange(layout.text_length)[:, None].expand(-1, 3)]
    shift = layout.text_length
    for rows, columns in layout.references:
        parts.append(_grid_ids(shift, rows, columns))
        shift += max(rows, columns)
    parts.append(_grid_ids(shift, *layout.image))
    return torch.cat(parts)


def _grid_ids(shift: int, rows: int, columns: int) -> Tensor:
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack((torch.full_like(row, shift), row, column), dim=-1).flatten(0, 1)


def rotation(ids: Tensor, axes: Sequence[int]) -> Rotation:
    """Cosines and sines, each [S, head_dim / 2] float32 on the CPU, of ids [S, 3]; axes: head dims of each axis."""
    angles = []
    for axis, width in enumerate(axes):
        frequency = THETA ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(ids[:, axis, None].to(torch.float64) * frequency)
    angle = torch.cat(angles, dim=1)
    return angle.cos().to(torch.float32), angle.sin().to(torch.float32)


@torch.compiler.disable
def batch_rotation(layouts: Sequence[SampleLayout], axes: Sequence[int], device: torch.device | str) -> Rotation:
    """Cosines and sines [B, S, head_dim / 2] of a batch, padded to the longest sample; [1, S, ...] if all are alike."""
    distinct = list(dict.fromkeys(layouts))
    tables = {layout: rotation(position_ids(layout), axes) for layout in distinct}
    chosen = [tables[layout] for layout in (distinct if len(distinct) == 1 else layouts)]
    cos = torch.nn.utils.rnn.pad_sequence([cos for cos, _ in chosen], batch_first=True, padding_value=1.0)
    sin = torch.nn.utils.rnn.pad_sequence([sin for _, sin in chosen], batch_first=True)
    return cos.to(device), sin.to(device)


def parts(table: Rotation, places: Sequence[tuple[int, int]], length: int) -> Rotation:
    """The rotation of `length` tokens from each (sample, start): [G, length, head_dim / 2]; [1, ...] if all agree."""
    samples = table[0].shape[0]
    distinct = dict.fromkeys((sample % samples, start) for sample, start in places)
    if len(distinct) > 1:
        distinct = [(sample % samples, start) for sample, start in places]
    cos, sin = (torch.cat([t[sample : sample + 1, at : at + length] for sample, at in distinct]) for t in table)
    return cos, sin


def rotate(x: Tensor, table: Rotation) -> Tensor:
    """Rotate heads x [B, S, H, head_dim] by a table [B or 1, S, head_dim / 2]; dims (2j, 2j + 1) form a pair."""
    cos, sin = (t.unsqueeze(2) for t in table)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)
