"""Drawing in a chat: from what the model has read to a picture, by the pack's own sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import torch

import comfy.model_management

from ..omnigen2_core.advice import notes_on_references
from ..omnigen2_core.chat import Drawing
from ..omnigen2_core.images import reference_size
from ..omnigen2_core.pipeline import EncodedText
from ..omnigen2_core.profile import ModelProfile
from .encode import empty_latent, settle_size, with_references
from .host.conditioning import MASK, Conditioning
from .host.references import encode_reference
from .sampling import sample_latent


@dataclass(frozen=True)
class Drawn:
    """An image [1, H, W, 3] in 0..1, and notes for the user."""

    image: torch.Tensor
    notes: list[str]


def draw(
    model: Any,
    vae: Any,
    drawing: Drawing,
    message: str,
    profile: ModelProfile,
    *,
    width: int,
    height: int,
    match_reference: bool,
    sampler: Mapping[str, Any],
) -> Drawn:
    """The picture that `message` asks for, in the size that OmniGen2 Encode would settle on.

    sampler: the settings of `sample_latent`. Raises what that raises.
    """
    limits = {"max_pixels": profile.max_pixels, "multiple": profile.size_multiple}
    reference_limits = {**limits, "max_side": profile.max_side}
    sizes = [picture.size for picture in drawing.references]
    read_as = [reference_size(*size, **reference_limits) for size in sizes]
    made, notes = settle_size((width, height), read_as, match_reference, **limits)
    notes = notes + notes_on_references(message, sizes, profile.min_reference_side)

    latents = [encode_reference(vae, picture, **reference_limits) for picture in drawing.references]
    positive, negative = _conditioning(drawing.text), _conditioning(drawing.negative)
    samples, more, _ = sample_latent(
        model,
        with_references(positive, latents),
        with_references(negative, latents),
        negative,
        empty_latent(*made, 1),
        **sampler,
    )
    return Drawn(vae.decode(samples), notes + more)


def _conditioning(text: EncodedText) -> Conditioning:
    """As an encoder's node gives it: in fp32, where ComfyUI keeps what goes from node to node."""
    device = comfy.model_management.intermediate_device()
    return [[text.hidden.float().to(device), {"pooled_output": None, MASK: text.mask.to(device)}]]
