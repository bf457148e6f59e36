"""Reference pictures on their way from IMAGE sockets to the conditioning."""

from __future__ import annotations

from typing import Any, Callable

import torch
from PIL import Image

from ...omnigen2_core.errors import ReferenceImageError
from ...omnigen2_core.images import reference_size, resize, to_image_tensor, to_pil, to_rgb

LATENT_CHANNELS = 16
PIXELS_PER_LATENT = 8


def collect_pictures(slots: dict[str, torch.Tensor | None] | None, limit: int) -> list[Image.Image]:
    """The pictures of a growing list of IMAGE inputs, in slot order; a batch of n images counts as n pictures.

    Raises ReferenceImageError for more than `limit` of them.
    """
    count = sum(batch.shape[0] for batch in _batches(slots))
    if count > limit:
        raise ReferenceImageError(
            f"{count} reference images are connected (every image of a batch counts), but the model reads at most "
            f"{limit}; remove {count - limit} of them."
        )
    return all_pictures(slots)


def pictures_in(batch: torch.Tensor) -> list[Image.Image]:
    """The pictures of a batch [B, H, W, C]."""
    return [to_rgb(to_pil(image)) for image in batch]


def all_pictures(
    slots: dict[str, torch.Tensor | None] | None, read: Callable[[torch.Tensor], list[Image.Image]] = pictures_in
) -> list[Image.Image]:
    """As `collect_pictures`, however many they are. `read` gives the pictures of a batch."""
    return [picture for batch in _batches(slots) for picture in read(batch)]


def require_vae(vae: Any) -> None:
    """Raises ReferenceImageError unless `vae` makes latents that OmniGen2 can read."""
    if vae is None:
        raise ReferenceImageError(
            "Reference images are connected but no VAE is; connect the VAE output of an OmniGen2 loader to the vae "
            "input."
        )
    channels, factor = getattr(vae, "latent_channels", None), getattr(vae, "downscale_ratio", None)
    if (channels, factor) != (LATENT_CHANNELS, PIXELS_PER_LATENT):
        raise ReferenceImageError(
            f"The connected VAE makes latents with {channels} channels, but OmniGen2 reads {LATENT_CHANNELS}; load "
            "models/vae/ae.safetensors, the VAE that comes with OmniGen2 or FLUX.1."
        )


def encode_reference(vae: Any, picture: Image.Image, *, max_pixels: int, max_side: int, multiple: int) -> torch.Tensor:
    """One picture as its mean latents [1, 16, h, w] in the VAE's own scale, sized by the reference's rule."""
    width, height = reference_size(*picture.size, max_pixels=max_pixels, max_side=max_side, multiple=multiple)
    return vae.encode(to_image_tensor(resize(picture, width, height)))


def _batches(slots: dict[str, torch.Tensor | None] | None) -> list[torch.Tensor]:
    return [slots[name] for name in sorted(slots or {}, key=_slot_number) if slots[name] is not None]


def _slot_number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])
