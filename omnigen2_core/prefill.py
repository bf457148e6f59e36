"""Prompts read before an answer is written. What all of them begin with, pictures included, is read once.

Questions about the same pictures are the same up to where the question begins, and the pictures are nearly all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .mllm import Qwen2_5_VL

LEAST_SAVED = 256
"""Tokens that need not be read, from which on reading a common beginning by itself is worth a pass of its own."""


def read_prompts(
    model: Qwen2_5_VL,
    ids: Tensor,
    mask: Tensor,
    grid: Tensor | None = None,
    visual: Tensor | None = None,
    cache: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads prompts [B, L], padded on either side, into a transformers cache, which must be empty.

    `visual` and `grid` are as in `Qwen2_5_VL.forward`; without a `cache` nothing can be written after the prompts.

    Returns:
        The states [B, D] that each row's next token is told from; the mask [B, S] of what the cache then holds; and the
        positions [B] that follow. Raises PromptError when image tokens and images do not match.
    """
    positions, following = model.rope_positions(ids, mask, grid)
    real = [row.nonzero().flatten() for row in mask]
    shown = _split_by_row(model, ids, real, visual)
    shared = _common_beginning(ids, positions, real, shown, model.config.image_token_id) if len(ids) > 1 else 0
    if shared * (len(ids) - 1) < LEAST_SAVED:
        hidden = model(ids, mask, grid=grid, visual=visual, positions=positions, cache=cache)
        return last_states(hidden, mask), mask, following
    return *_read_beginning_once(model, ids, positions, real, shown, shared, cache), following


def last_states(hidden: Tensor, mask: Tensor) -> Tensor:
    """The states [B, D] that the next token is told from: of hidden [B, L, D], those of each row's last real token."""
    last = mask.shape[1] - 1 - mask.flip(1).to(torch.int32).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _split_by_row(model: Qwen2_5_VL, ids: Tensor, real: Sequence[Tensor], visual: Tensor | None) -> list[Tensor] | None:
    """The visual tokens of each row."""
    if visual is None:
        return None
    counts = [int((row[places] == model.config.image_token_id).sum()) for row, places in zip(ids, real)]
    return list(visual.split(counts))


def _common_beginning(ids: Tensor, positions: Tensor, real: Sequence[Tensor], shown: Sequence[Tensor] | None, image: int) -> int:
    """How many tokens all rows begin with alike; of each row at least one is left. Pictures alike are so to the bit."""
    positions = positions.to(ids.device)
    length = min(map(len, real)) - 1
    for row, places in enumerate(real[1:], 1):
        first, own = real[0][:length], places[:length]
        same = (ids[0, first] == ids[row, own]) & (positions[:, 0, first] == positions[:, row, own]).all(dim=0)
        if shown is not None:
            count = min(len(shown[0]), len(shown[row]))
            alike = (shown[0][:count] == shown[row][:count]).all(dim=1)
            # The n-th image token stands for the n-th visual token.
            images = ids[0, first] == image
            same = same & (~images | (images.cumsum(dim=0) <= _run_of(alike)))
        length = _run_of(same)
    return length


def _run_of(true: Tensor) -> int:
    """How many of a bool tensor [N] are true before the first that is not."""
    return int(true.cumprod(dim=0).sum())


def _read_beginning_once(
    model: Qwen2_5_VL,
    ids: Tensor,
    positions: Tensor,
    real: Sequence[Tensor],
    shown: Sequence[Tensor] | None,
    shared: int,
    cache: Any,
) -> tuple[Tensor, Tensor]:
    """States [B, D] and mask [B, S] as `read_prompts` returns them, of rows whose first `shared` tokens are alike."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache() if cache is None else cache
    positions = positions.to(ids.device)
    beginning = real[0][:shared]
    seen = 0 if shown is None else int((ids[0, beginning] == model.config.image_token_id).sum())
    model(
        ids[:1, beginning],
        ids.new_ones(1, shared),
        visual=shown[0][:seen] if seen else None,
        positions=positions[:, :1, beginning],
        cache=cache,
    )
    cache.batch_repeat_interleave(len(ids))
    rests = [places[shared:] for places in real]
    longest = max(map(len, rests))
    # Any token fills a row that stands for no picture.
    rest_ids = ids[0, real[0][0]].repeat(len(ids), longest)
    rest_mask = torch.zeros_like(rest_ids)
    rest_positions = positions.new_ones(3, len(ids), longest)
    for row, places in enumerate(rests):
        own = slice(longest - len(places), longest)
        rest_ids[row, own], rest_mask[row, own], rest_positions[:, row, own] = ids[row, places], 1, positions[:, row, places]
    visual = torch.cat([tokens[seen:] for tokens in shown]) if shown is not None else ids.new_empty(0)
    mask = torch.cat([ids.new_ones(len(ids), shared), rest_mask], dim=1)
    hidden = model(rest_ids, mask, visual=visual if len(visual) else None, positions=rest_positions, cache=cache)
    return hidden[:, -1], mask
