"""Which tensor is stored in which format, and why.

The matrices of the blocks take the format that is asked for; they are nearly all of a model. What a block format's
blocks do not divide goes to another one. Everything at the model's ends, where few weights do much, stays as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoints.header import TensorInfo
from ..quantised import GGUF_FORMATS, Format

FORMATS = ("q8_0", "q6_k", "q5_k", "q4_k", "q5_0", "q4_0", "fp8", "int8")
"""What can be asked for."""
SAFETENSORS_FORMATS = ("fp8", "int8")

_BLOCKS = re.compile(
    r"(layers|noise_refiner|ref_image_refiner|context_refiner)\.\d+\."
    r"|(model\.(language_model\.)?layers|(model\.)?visual\.blocks)\.\d+\.|(model\.)?visual\.merger\."
)
_BLOCKS_SAY, _VOCABULARY_SAYS = "matrices of the blocks", "the vocabulary"
_VOCABULARY = re.compile(r"(model\.(language_model\.)?embed_tokens|lm_head)\.weight")
# GGUF knows at most four dimensions.
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Choice:
    """How one tensor is stored: `format` in GGUF's or safetensors' name, in which shape, and the reason in a few words."""

    format: str
    shape: tuple[int, ...]
    reason: str

    @property
    def block(self) -> Format | None:
        """The block format, None for plain numbers, fp8 and int8."""
        return GGUF_FORMATS.get(self.format)


def choose(name: str, info: TensorInfo, wanted: str) -> Choice:
    """How to store the tensor `name` when `wanted` (one of `FORMATS`) is asked for."""
    return _for_safetensors(name, info, wanted) if wanted in SAFETENSORS_FORMATS else _for_gguf(name, info, wanted.upper())


def _for_safetensors(name: str, info: TensorInfo, wanted: str) -> Choice:
    if len(info.shape) == 2 and (_BLOCKS.match(name) or _VOCABULARY.fullmatch(name)):
        return Choice(wanted, info.shape, _VOCABULARY_SAYS if _VOCABULARY.fullmatch(name) else _BLOCKS_SAY)
    return Choice(info.dtype, info.shape, _kept(info))


def _for_gguf(name: str, info: TensorInfo, wanted: str) -> Choice:
    if len(info.shape) < 2:
        return Choice("F32", info.shape, _kept(info))
    if len(info.shape) == 2 and _VOCABULARY.fullmatch(name):
        # A prompt's every word comes from one row of it.
        finest = max(wanted, "Q8_0", key=lambda format: GGUF_FORMATS[format].bits)
        return _divided(finest, info, _VOCABULARY_SAYS) or _plain(info)
    if len(info.shape) == 2 and _BLOCKS.match(name):
        other = f"of the blocks, where blocks of {GGUF_FORMATS[wanted].values} ({wanted}) do not divide a matrix"
        return _divided(wanted, info, _BLOCKS_SAY) or _divided("Q8_0", info, other) or _plain(info)
    return _plain(info)


def _divided(format: str, info: TensorInfo, reason: str) -> Choice | None:
    """The tensor in blocks of `format`: as its rows are, or all in a row where only that divides."""
    values = GGUF_FORMATS[format].values
    if info.shape[-1] % values == 0:
        return Choice(format, info.shape, reason)
    if math.prod(info.shape) % values == 0:
        flat = (math.prod(info.shape) // values, values)
        return Choice(format, flat, f"{reason}; flattened, since its rows are no multiples of {values}")
    return None


def _plain(info: TensorInfo) -> Choice:
    shape = info.shape if len(info.shape) <= _MOST_DIMENSIONS else (math.prod(info.shape),)
    return Choice(info.dtype, shape, _kept(info))


def _kept(info: TensorInfo) -> str:
    return "norms and biases, which are small" if len(info.shape) < 2 else "the model's ends, kept as they are"


def describe(choices: Iterable[tuple[Choice, int]]) -> str:
    """The mix as text, a line for each format and reason: how many tensors, how many bytes."""
    counted: dict[tuple[str, str], list[int]] = {}
    for choice, size in choices:
        row = counted.setdefault((choice.format, choice.reason), [0, 0])
        row[0] += 1
        row[1] += size
    lines = [
        f"{count:>6} tensors  {readable(size):>8}  {format:<5} {reason}"
        for (format, reason), (count, size) in sorted(counted.items(), key=lambda item: -item[1][1])
    ]
    return "\n".join(lines)


def readable(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
