"""CONDITIONING of OmniGen2 as plain data: text, its mask, and reference latents.

ComfyUI's contract: a list of `[text [B, L, D], options]`, where the options hold `attention_mask` [B, L] (1 = real)
and `reference_latents`, a list of unscaled latents [B, 16, h, w]. Nothing here changes its input.
"""

from __future__ import annotations

from typing import Any

import torch

from ...omnigen2_core.errors import PromptError, ReferenceImageError

Conditioning = list[list[Any]]
MASK = "attention_mask"
REFERENCES = "reference_latents"


def count_references(conditioning: Conditioning) -> int:
    """The largest number of references that an entry carries."""
    return max((len(options.get(REFERENCES) or ()) for _, options in conditioning), default=0)


def largest_reference_batch(conditioning: Conditioning) -> int:
    """The size of the largest reference that is a batch of latents; 0 if each is a single one."""
    sizes = [len(latent) for _, options in conditioning for latent in options.get(REFERENCES) or ()]
    return max((size for size in sizes if size > 1), default=0)


def with_references_of(conditioning: Conditioning, source: Conditioning) -> Conditioning:
    """The same texts, each with the references of the first entry in `source` that has some."""
    latents = next((options[REFERENCES] for _, options in source if options.get(REFERENCES)), [])
    return [[text, {**options, REFERENCES: list(latents)}] for text, options in conditioning]


def without_references(conditioning: Conditioning) -> Conditioning:
    """The same texts without references."""
    return [[text, {k: v for k, v in options.items() if k != REFERENCES}] for text, options in conditioning]


def with_full_masks(conditioning: Conditioning) -> Conditioning:
    """The same conditioning with a mask as long as its text.

    ComfyUI's own model stops without a mask, and ConditioningConcat lengthens the text but not the mask: what a
    mask does not speak of is real text.
    """
    return [
        [text, options if text is None else {**options, MASK: full_mask(text, options.get(MASK))}]
        for text, options in conditioning
    ]


def full_mask(text: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """A mask [B, L] for text [B, L, D]; missing columns count as real, columns beyond the text are dropped."""
    batch, length = text.shape[:2]
    if mask is None:
        return torch.ones((batch, length), dtype=torch.int64)
    mask = mask.reshape(-1, mask.shape[-1])[:, :length]
    mask = mask.expand(batch, -1) if mask.shape[0] == 1 else mask
    missing = torch.ones((mask.shape[0], length - mask.shape[1]), dtype=mask.dtype, device=mask.device)
    return torch.cat((mask, missing), dim=1)


def pack_text(text: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Real tokens first and nothing longer than the longest text.

    text: [B, L, D]; mask: [B, <= L] or None. Returns text [B, L', D] and its mask [B, L'] (int64, 1 = real),
    or None where no token is padding, which is the case for every single prompt.

    Raises PromptError if a row has no real token.
    """
    real = full_mask(text, mask).to(text.device) != 0
    lengths = real.sum(dim=1)
    if bool((lengths == 0).any()):
        raise PromptError("This conditioning has no text at all, not even its template; encode the prompt again.")
    if bool(real.all()):
        return text, None
    rows = [row[keep] for row, keep in zip(text, real)]
    packed = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if bool((lengths == lengths[0]).all()):
        return packed, None
    positions = torch.arange(packed.shape[1], device=text.device)
    return packed, (positions[None] < lengths[:, None]).to(torch.int64)


def check_text(text: torch.Tensor | None, width: int) -> None:
    """Raises PromptError unless the text [B, L, D] comes from an encoder of this model's width."""
    if text is None or text.ndim != 3:
        raise PromptError("The conditioning carries no text; connect the output of OmniGen2 Encode or CLIP Text Encode.")
    if text.shape[-1] != width:
        raise PromptError(
            f"The conditioning is {text.shape[-1]} values wide, but this model reads {width}: it was made by another "
            "text encoder. Use the encoder that belongs to the model (Qwen2.5-VL 3B for the published OmniGen2)."
        )


def check_references(latents: list[torch.Tensor], channels: int, limit: int) -> None:
    """Raises ReferenceImageError for more references than the model knows, or latents of another VAE."""
    if len(latents) > limit:
        raise ReferenceImageError(
            f"The conditioning carries {len(latents)} references, but OmniGen2 knows at most {limit}; remove some."
        )
    for i, latent in enumerate(latents, start=1):
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise ReferenceImageError(
                f"Reference {i} is a latent of shape {list(latent.shape)}, but OmniGen2 reads [batch, {channels}, "
                "height/8, width/8]; encode it with the VAE that belongs to the model (ae.safetensors)."
            )
