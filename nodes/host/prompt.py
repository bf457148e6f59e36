"""Encoding one prompt with any OmniGen2 CLIP, this pack's or core's, and saying what did not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from PIL import Image

import comfy.sd
from comfy.text_encoders.omnigen2 import Omnigen2Model

from ...omnigen2_core.errors import CheckpointError, PromptError
from ...omnigen2_core.profile import PUBLISHED, ModelProfile
from ...omnigen2_core.prompts import chat_prompt
from .clip import OmniGen2Encoder

_SHOWN = 60


@dataclass(frozen=True)
class EncodedPrompt:
    """`conditioning` in ComfyUI's form; the prompt had `tokens` tokens where `limit` are read, and `cut` was lost."""

    conditioning: list[list[Any]]
    tokens: int
    limit: int
    cut: str

    def notes(self, what: str) -> list[str]:
        """What to say about the length of the text that is called `what`."""
        if self.tokens <= self.limit:
            return []
        if not self.cut:
            return [
                f"The {what} has {self.tokens} tokens; the model was trained on at most {self.limit} and may "
                "overlook some of it."
            ]
        # The cut may go through a letter of several tokens.
        lost = self.cut.strip().lstrip("\ufffd")
        shown = lost if len(lost) <= _SHOWN else lost[:_SHOWN].rsplit(" ", 1)[0] + " ..."
        return [
            f"The {what} has {self.tokens} tokens and the model reads {self.limit}; this was cut off at the end: "
            f"{shown}"
        ]


def profile_of_clip(clip: comfy.sd.CLIP) -> ModelProfile:
    """What suits the model that the CLIP belongs to; core's own CLIP is the published one.

    Raises PromptError unless the CLIP is OmniGen2's encoder.
    """
    model = getattr(clip, "cond_stage_model", None)
    if isinstance(model, OmniGen2Encoder):
        return model.profile
    if isinstance(model, Omnigen2Model):
        return PUBLISHED
    what = "nothing" if model is None else f"another text encoder ({type(model).__name__})"
    raise PromptError(
        f"The clip input is {what}, but OmniGen2 needs Qwen2.5-VL 3B; connect OmniGen2 Load Encoder, OmniGen2 Load "
        "Folder, or Load CLIP with models/text_encoders/qwen_2.5_vl_fp16.safetensors."
    )


def encode_prompt(
    clip: comfy.sd.CLIP, text: str, pictures: Sequence[Image.Image] = (), *, chat: bool = False
) -> EncodedPrompt:
    """Encodes `text` as it stands: brackets are text, and no part weighs more than another.

    chat: the template of the chat pipeline, which is never cut and in which the encoder may look at `pictures`; else
    that of the generation pipeline, cut at what the model reads. Raises PromptError for another model's CLIP, and
    CheckpointError when there are pictures and the encoder has no eyes.
    """
    limit = profile_of_clip(clip).max_text_tokens
    if isinstance(clip.cond_stage_model, OmniGen2Encoder):
        tokens = clip.tokenize(text, images=pictures, chat=chat, disable_weights=True, uncut=True)
    elif pictures:
        raise CheckpointError(
            "ComfyUI's Load CLIP builds this encoder without its vision part, so it cannot look at images; use "
            "OmniGen2 Load Encoder, or turn encoder_sees_images off."
        )
    else:
        template = {"llama_template": chat_prompt("{}")} if chat else {}
        tokens = clip.tokenize(text, disable_weights=True, **template)
    [(name, [row])] = tokens.items()
    kept = row if chat else row[:limit]
    cut = clip.tokenizer.decode([token for token, *_ in row[len(kept) :]])
    return EncodedPrompt(clip.encode_from_tokens_scheduled({name: [kept]}), len(row), limit, cut)
