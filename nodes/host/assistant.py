"""An OmniGen2 CLIP as something to talk with; it comes onto the device through ComfyUI's memory management."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from PIL import Image

import comfy.model_management
import comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy.text_encoders.omnigen2 import Omnigen2Model

from ...omnigen2_core.assistant import Answer, Assistant
from ...omnigen2_core.checkpoints import require_vision
from ...omnigen2_core.errors import PromptError
from .clip import OmniGen2Encoder, pictures_in_rows
from .tokenizer import TOKENS

SCORE_BYTES = 32
"""Memory for one word of the vocabulary while a token is chosen: fp32 scores, their order and what is left out."""


@dataclass(frozen=True, kw_only=True)
class HostAssistant(Assistant):
    """An assistant whose weights ComfyUI loads before every answer: another model may have taken their place."""

    patcher: ModelPatcher
    encoder: OmniGen2Encoder

    def write(
        self, chats: Sequence[str], images: Sequence[Sequence[Image.Image]], *, max_new_tokens: int, **options: Any
    ) -> list[Answer]:
        """As `Assistant.write`; weights, activations and the cache of keys and values get their room first."""
        self.load(chats, images, max_new_tokens)
        with comfy.model_management.cuda_device_context(self.device):
            return super().write(chats, images, max_new_tokens=max_new_tokens, **options)

    def encode(self, chat: str, images: Sequence[Image.Image] = ()) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Assistant.encode`, with the weights loaded first."""
        self.load([chat], [images], 0)
        with comfy.model_management.cuda_device_context(self.device):
            return super().encode(chat, images)

    def first_log_probabilities(self, chats: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> torch.Tensor:
        """As `Assistant.first_log_probabilities`, with the weights loaded first."""
        self.load(chats, images, 0)
        with comfy.model_management.cuda_device_context(self.device):
            return super().first_log_probabilities(chats, images)

    def load(self, chats: Sequence[str], images: Sequence[Sequence[Image.Image]], max_new_tokens: int) -> None:
        """Bring the weights onto the device, with room for reading these prompts and writing so many tokens.

        Raises CheckpointError when there are images and the file has no vision part.
        """
        if any(images):
            require_vision(self.encoder.part.info)
        rows = [self._row(chat, own) for chat, own in zip(chats, images, strict=True)]
        needed = writing_memory(self.encoder, rows, max_new_tokens)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def _row(self, chat: str, images: Sequence[Image.Image]) -> list[tuple]:
        options = {"skip_template": True, "disable_weights": True}
        return self.encoder.tokenizer.tokenize_with_weights(chat, images=images, **options)[TOKENS][0]


def assistant_of(clip: comfy.sd.CLIP) -> HostAssistant:
    """The assistant that a CLIP is. Raises PromptError unless it is this pack's encoder, the only one that writes."""
    encoder = getattr(clip, "cond_stage_model", None)
    if not isinstance(encoder, OmniGen2Encoder):
        raise PromptError(
            f"The clip input is {_what(encoder)}, which cannot look at images and answer; connect OmniGen2 Load "
            "Encoder with models/text_encoders/qwen_2.5_vl_fp16.safetensors, or OmniGen2 Load Folder."
        )
    tokenizer = clip.tokenizer
    return HostAssistant(
        encoder.transformer,
        tokenizer.tokenizer,
        tokenizer.pixels,
        clip.patcher.load_device,
        patcher=clip.patcher,
        encoder=encoder,
    )


def writing_memory(encoder: OmniGen2Encoder, rows: Sequence[list[tuple]], max_new_tokens: int) -> float:
    """Bytes needed beside the weights to read prompts, as tokens with pictures in their places, and write after them.

    Counted are activations, of the vision tower for one picture, since it looks at one after the other, the keys and
    values of every token up to the longest answer, the output projection, which a model with tied weights has to make
    of its embeddings, and the scores of one step.
    """
    config = encoder.transformer.config
    text, size = config.text, comfy.model_management.dtype_size(encoder.transformer.compute_dtype)
    activations = encoder.reading_memory(rows) + max(map(encoder.looking_memory, pictures_in_rows(rows)), default=0.0)
    per_token = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * config.head_dim * size
    cache = len(rows) * (max(map(encoder.length_of, rows)) + max_new_tokens) * per_token
    head = text["vocab_size"] * text["hidden_size"] * size if config.tied else 0
    scores = len(rows) * text["vocab_size"] * SCORE_BYTES
    return activations + cache + head + scores


def _what(encoder: Any) -> str:
    if encoder is None:
        return "nothing"
    if isinstance(encoder, Omnigen2Model):
        return "ComfyUI's own OmniGen2 encoder, which Load CLIP builds without its vision part"
    return f"another text encoder ({type(encoder).__name__})"
