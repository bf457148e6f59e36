"""Positions of text and image tokens in Qwen2.5-VL: three axes (time, row, column), from ids and grids alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import PromptError


def rope_positions(
    ids: Tensor, mask: Tensor, grid: Tensor | None = None, *, image_token_id: int, merge_size: int
) -> tuple[Tensor, Tensor]:
    """M-RoPE positions [3, B, L] (time, row, column) and the position [B] that follows each sample's last token.

    Text advances all three axes by one. A merged image token has (p, p + row, p + column), p being where the image
    begins, and the text after it goes on at p + max(rows, columns). Padding has position 1. Images are taken from
    `grid` in the order of their placeholders; without `grid` a placeholder is an ordinary token. Raises PromptError
    when placeholders and images do not match.
    """
    ids_cpu, mask_cpu = ids.cpu(), mask.cpu().bool()
    images = [] if grid is None else grid.tolist()
    positions = torch.ones(3, *ids.shape, dtype=torch.long)
    following = torch.zeros(ids.shape[0], dtype=torch.long)
    used = 0
    for sample in range(ids.shape[0]):
        tokens = ids_cpu[sample][mask_cpu[sample]]
        is_image = [grid is not None and token == image_token_id for token in tokens.tolist()]
        pieces, start, position = [], 0, 0
        while start < len(is_image):
            if not is_image[start]:
                end = is_image.index(True, start) if True in is_image[start:] else len(is_image)
                pieces.append((torch.arange(end - start) + position).expand(3, -1))
                start, position = end, position + end - start
                continue
            if used == len(images):
                raise PromptError(f"The prompt has places for more images than the {len(images)} that were given.")
            time, rows, columns = images[used]
            rows, columns = rows // merge_size, columns // merge_size
            count = time * rows * columns
            if not all(is_image[start : start + count]) or start + count > len(is_image):
                raise PromptError(
                    f"Image {used + 1} needs {count} image tokens in a row in the prompt, but there are fewer. "
                    "Tokenize the prompt with the same images."
                )
            axes = torch.meshgrid(torch.arange(time), torch.arange(rows), torch.arange(columns), indexing="ij")
            pieces.append(torch.stack(axes).reshape(3, -1) + position)
            start, position, used = start + count, position + max(rows, columns), used + 1
        if pieces:
            positions[:, sample, mask_cpu[sample]] = torch.cat(pieces, dim=1)
        following[sample] = position
    if used < len(images):
        raise PromptError(f"{len(images)} images were given, but the prompt has places for only {used}.")
    return positions, following
