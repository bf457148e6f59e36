"""Size rules for references and results, and the way between PIL pictures and tensors.

Two tensor forms occur: *pixels* [B, 3, H, W] in -1..1, which the autoencoder takes and gives,
and *images* [B, H, W, C] in 0..1, which ComfyUI passes around.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from .errors import ReferenceImageError, SizeError

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def reference_size(
    width: int, height: int, *, max_pixels: int = 1024 * 1024, max_side: int | None = 1024, multiple: int = 16
) -> tuple[int, int]:
    """Width and height that a reference of the given size is resized to before encoding.

    References are only ever made smaller, to at most `max_pixels` and `max_side` (None: as long as `max_pixels`
    allows); sides are cut down to multiples of `multiple`, and are never less than one, however thin the picture is.

    Raises:
        SizeError: The size is empty or a limit is too small.
    """
    _check_size(width, height)
    _check_limit("max_pixels", max_pixels, multiple * multiple)
    ratio = min(math.sqrt(max_pixels / (width * height)), 1.0)
    if max_side is not None:
        _check_limit("max_side", max_side, multiple)
        ratio = min(ratio, max_side / max(width, height))
    return _floor_to(width * ratio, multiple), _floor_to(height * ratio, multiple)


def output_size(
    width: int, height: int, *, max_pixels: int = 1024 * 1024, multiple: int = 16
) -> tuple[int, int]:
    """Width and height at which a requested picture is generated.

    The finished picture is stretched to the requested size afterwards (see `from_pixels`).

    Raises:
        SizeError: The size is empty or `max_pixels` is too small.
    """
    _check_size(width, height)
    _check_limit("max_pixels", max_pixels, multiple * multiple)
    ratio = min(math.sqrt(max_pixels / (width * height)), 1.0)
    return _floor_to(width * ratio, multiple), _floor_to(height * ratio, multiple)


def picture_lists(pictures: Sequence[Sequence[Image.Image] | None], owner: str) -> list[list[Image.Image]]:
    """The pictures of every `owner`, which is "prompt" or "question", as lists; None is an empty one.

    Raises:
        ReferenceImageError: A picture stands where a list of pictures belongs.
    """
    if isinstance(pictures, Image.Image) or any(isinstance(own, Image.Image) for own in pictures):
        raise ReferenceImageError(
            f"Got a picture where a list of pictures belongs; give for every {owner} a list of its pictures: [[picture]]."
        )
    return [list(own or ()) for own in pictures]


def _floor_to(side: float, multiple: int) -> int:
    return max(int(side) // multiple * multiple, multiple)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise SizeError(f"An image of {width}x{height} px is empty; both sides must be at least 1 px.")


def _check_limit(name: str, value: int, least: int) -> None:
    if value < least:
        raise SizeError(f"{name} is {value}; it must be at least {least}.")


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it, in 8-bit RGB.

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled down to 8 bits.

    Raises:
        SizeError: The picture holds floating point values, whose range is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise SizeError(
            "A floating point image has no known range of brightness; convert it to 8 or 16 bits per channel."
        )
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


def content_mark(image: Image.Image) -> str:
    """Tells a picture from another by its size and what `to_rgb` makes of it, as 64 hex digits. Raises what that raises."""
    return hashlib.sha256(f"{image.size}".encode() + to_rgb(image).tobytes()).hexdigest()


def to_pixels(image: Image.Image) -> torch.Tensor:
    """A picture of any mode as pixels [1, 3, H, W], fp32 in -1..1, at its own size."""
    array = np.asarray(to_rgb(image), dtype=np.float32) / 255.0
    return torch.from_numpy(2.0 * array - 1.0).permute(2, 0, 1)[None].contiguous()


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Lanczos resize in 8-bit RGB, as the reference does for the pictures it is given."""
    image = to_rgb(image)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def reference_pixels(
    image: Image.Image, *, max_pixels: int = 1024 * 1024, max_side: int | None = 1024, multiple: int = 16
) -> torch.Tensor:
    """A reference picture made ready for the autoencoder: [1, 3, h, w] in -1..1, sized by `reference_size`.

    Raises:
        SizeError: See `reference_size` and `to_rgb`.
    """
    image = to_rgb(image)
    size = reference_size(*image.size, max_pixels=max_pixels, max_side=max_side, multiple=multiple)
    return to_pixels(resize(image, *size))


def from_pixels(pixels: torch.Tensor, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """Pictures from decoded pixels [B, 3, H, W] in -1..1, stretched to `size` (width, height) if given."""
    pixels = pixels.detach().float()
    if size is not None and tuple(pixels.shape[-2:]) != (size[1], size[0]):
        pixels = torch.nn.functional.interpolate(pixels, size=(size[1], size[0]), mode="bilinear", align_corners=False)
    images = (pixels / 2 + 0.5).permute(0, 2, 3, 1)
    return [to_pil(image) for image in images]


def to_pil(image: torch.Tensor) -> Image.Image:
    """One image tensor [H, W, C] in 0..1 as a picture; C is 1 (grey), 3 (RGB) or 4 (RGB and alpha).

    Values outside 0..1 are clipped, values that are not numbers become black.

    Raises:
        SizeError: The tensor has another shape.
    """
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise SizeError(
            f"An image tensor must be [height, width, 1, 3 or 4 channels], got {list(image.shape)}."
        )
    _check_size(image.shape[1], image.shape[0])
    values = image.detach().float().nan_to_num(nan=0.0).clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu().numpy()
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def to_image_tensor(image: Image.Image) -> torch.Tensor:
    """A picture as an image tensor [1, H, W, 3], fp32 in 0..1."""
    return torch.from_numpy(np.asarray(to_rgb(image), dtype=np.float32) / 255.0)[None]
