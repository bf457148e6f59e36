"""Pictures for Qwen2.5-VL's vision tower: the size rule, normalisation and the order of patches.

PIL's bicubic resize is part of the model's definition: torch's antialiased one differs by up to 0.07.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import SizeError

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class PixelConfig:
    """What `preprocessor_config.json` says. Defaults are Qwen2.5-VL's; pixel limits are areas."""

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 3136
    max_pixels: int = 12845056
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PixelConfig":
        """Reads a `preprocessor_config.json`, older (`min_pixels`) or newer (`size`)."""
        size = values.get("size") or {}
        found = {
            "patch_size": values.get("patch_size"),
            "temporal_patch_size": values.get("temporal_patch_size"),
            "merge_size": values.get("merge_size"),
            "min_pixels": values.get("min_pixels") or size.get("shortest_edge"),
            "max_pixels": values.get("max_pixels") or size.get("longest_edge"),
            "mean": values.get("image_mean") and tuple(values["image_mean"]),
            "std": values.get("image_std") and tuple(values["image_std"]),
        }
        return cls(**{name: value for name, value in found.items() if value is not None})

    @property
    def factor(self) -> int:
        """Pixels along each side of one visual token; image sides become multiples of it."""
        return self.patch_size * self.merge_size


def smart_resize(width: int, height: int, config: PixelConfig = PixelConfig()) -> tuple[int, int]:
    """The (width, height) at which the vision tower sees an image.

    A side below one visual token is scaled up first, both sides alike. Raises SizeError for an empty image or an
    aspect ratio above 200.
    """
    shorter, longer = sorted((width, height))
    if shorter < 1 or longer / shorter > MAX_ASPECT_RATIO:
        raise SizeError(
            f"An image of {width}x{height} pixels is too thin for the encoder: one side may be at most "
            f"{MAX_ASPECT_RATIO} times the other. Crop or pad it."
        )
    factor = config.factor
    if shorter < factor:
        width, height = (round(side * factor / shorter) for side in (width, height))
    resized = [round(side / factor) * factor for side in (width, height)]
    area = resized[0] * resized[1]
    if area > config.max_pixels:
        beta = math.sqrt(width * height / config.max_pixels)
        resized = [max(factor, math.floor(side / beta / factor) * factor) for side in (width, height)]
    elif area < config.min_pixels:
        beta = math.sqrt(config.min_pixels / (width * height))
        resized = [math.ceil(side * beta / factor) * factor for side in (width, height)]
    return resized[0], resized[1]


def preprocess(images: Sequence[Image.Image], config: PixelConfig = PixelConfig()) -> tuple[Tensor, Tensor]:
    """Images to pixel values [patches, 3 * time * patch * patch] in fp32 and grids [images, 3] (time, rows, columns).

    The patches of one visual token follow each other. Raises SizeError as `smart_resize` does.
    """
    patch, merge, time = config.patch_size, config.merge_size, config.temporal_patch_size
    values, grids = [], []
    for image in images:
        width, height = smart_resize(*image.size, config)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized, dtype=np.float32) / 255.0
        pixels = (pixels - np.float32(config.mean)) / np.float32(config.std)
        rows, columns = height // patch, width // patch
        blocks = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, patch * patch)
        # A still image is a clip whose frames are all alike.
        values.append(np.repeat(blocks, time, axis=2).reshape(rows * columns, -1))
        grids.append((1, rows, columns))
    return torch.from_numpy(np.concatenate(values)), torch.tensor(grids, dtype=torch.long)


def token_counts(grid: Tensor, merge_size: int) -> list[int]:
    """How many image tokens each image of `grid` takes in the prompt."""
    return [count // merge_size**2 for count in grid.prod(dim=1).tolist()]


def visual_tokens(width: int, height: int, config: PixelConfig = PixelConfig()) -> int:
    """How many image tokens a picture of that size will take. Raises SizeError as `smart_resize` does."""
    width, height = smart_resize(width, height, config)
    return width * height // config.factor**2
