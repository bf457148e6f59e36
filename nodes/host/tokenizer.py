"""The tokenizer in the form that `comfy.sd.CLIP` asks for."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from PIL import Image

import comfy.text_encoders.omnigen2
from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ...omnigen2_core.errors import CheckpointError, PromptError
from ...omnigen2_core.images import to_pil, to_rgb
from ...omnigen2_core.mllm_config import MLLMConfig
from ...omnigen2_core.profile import ModelProfile
from ...omnigen2_core.prompts import OmniGen2Tokenizer, chat_prompt, generation_prompt
from ...omnigen2_core.vision import PixelConfig
from .parts import Part

TOKENS = "qwen25_3b"
"""The name under which core's OmniGen2 encoder passes its tokens."""

logger = logging.getLogger(__name__)


@cache
def _qwens_own() -> OmniGen2Tokenizer:
    """ComfyUI's Qwen2.5 files, which are part of its installation: read once, because that takes as long as mapping all
    weights does. Nothing changes the tokenizer that is made of them.
    """
    return OmniGen2Tokenizer.from_folder(Path(comfy.text_encoders.omnigen2.__file__).parent / "qwen25_tokenizer")


class HostTokenizer:
    """Core's tokenizer interface over `OmniGen2Tokenizer`, with images.

    Tokens are `{"qwen25_3b": [[(id, weight), ...]]}`; an image is a dict in the place of its placeholder's id.
    """

    def __init__(self, tokenizer: OmniGen2Tokenizer, pixels: PixelConfig, profile: ModelProfile):
        self.tokenizer = tokenizer
        self.special = tokenizer.special
        self.pixels = pixels
        self.profile = profile

    @classmethod
    def for_part(cls, part: Part) -> "HostTokenizer":
        """The tokenizer of the folder that `part` is of; where that has none, or for a file, ComfyUI's own Qwen2.5 files.

        Raises CheckpointError when the tokenizer has other ids than the encoder.
        """
        if part.folder is not None and part.folder.has_tokenizer:
            tokenizer = OmniGen2Tokenizer.from_folder(part.folder.tokenizer_folder)
            pixels = PixelConfig.from_dict(part.folder.processor_config)
        else:
            tokenizer, pixels = _qwens_own(), PixelConfig()
            rows = MLLMConfig.from_dict(part.config).text["vocab_size"]
            if tokenizer.vocabulary_size > rows:
                remedy = "load its whole folder with OmniGen2 Load Folder" if part.folder is None else "get processor/ too"
                raise CheckpointError(
                    f"{part.source} knows {rows} tokens, fewer than Qwen2.5's {tokenizer.vocabulary_size}, so it "
                    f"needs a tokenizer of its own; {remedy}."
                )
        tokenizer.check(part.config)
        return cls(tokenizer, pixels, part.profile)

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        *,
        images: Sequence[Image.Image] = (),
        image: torch.Tensor | None = None,
        chat: bool = False,
        llama_template: str | None = None,
        skip_template: bool = False,
        disable_weights: bool = False,
        uncut: bool = False,
        **_: Any,
    ) -> dict[str, list[list[tuple]]]:
        """Tokens of a prompt in its template.

        images: what the encoder sees; they, like `chat`, call for the chat template. image: the same as an IMAGE
        batch, which is how core's text generation gives it. disable_weights: brackets are text. uncut: tokens beyond
        what the model reads stay, for the caller to report. Other options are those of core's encoders and mean
        nothing here.
        """
        pictures = [*images, *(to_rgb(to_pil(picture)) for picture in (() if image is None else image))]
        if skip_template:
            template = text
        elif llama_template is not None:
            template = llama_template.format(text)
        elif chat or pictures:
            template = chat_prompt(text, len(pictures))
        else:
            template = generation_prompt(text)
        if disable_weights or pictures:
            parts = [(template, 1.0)]
        else:
            parts = [
                (unescape_important(piece), weight) for piece, weight in token_weights(escape_important(template), 1.0)
            ]
        row = [
            (token, weight, number)
            for number, (piece, weight) in enumerate(parts, 1)
            for token in self.tokenizer.encode(piece)
        ]
        limit = self.profile.max_text_tokens
        if not (chat or pictures or uncut or skip_template) and len(row) > limit:
            logger.warning("The prompt has %d tokens and OmniGen2 reads %d; the end was cut off.", len(row), limit)
            row = row[:limit]
        if pictures:
            row = self._place(row, pictures)
        return {TOKENS: [row if return_word_ids else [(token, weight) for token, weight, _ in row]]}

    def with_assistant_turn(self, row: list) -> list:
        """A prompt's tokens, with the assistant's turn opened where the template ends with the user's."""
        closing = self.tokenizer.encode("<|im_end|>\n")
        if row[-len(closing) :] != closing:
            return row
        return row + self.tokenizer.encode("<|im_start|>assistant\n")

    def untokenize(self, row: Sequence[tuple]) -> list[tuple[tuple, str]]:
        """Each token of a row with its text."""
        return [(pair, "<image>" if isinstance(pair[0], Mapping) else self.tokenizer.decode([pair[0]])) for pair in row]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        hidden = set(vars(self.special).values()) if skip_special_tokens else ()
        return self.tokenizer.decode([token for token in token_ids if token not in hidden])

    def state_dict(self) -> dict:
        """Nothing: checkpoints saved by ComfyUI carry no tokenizer of this kind."""
        return {}

    def _place(self, row: list[tuple], pictures: list[Image.Image]) -> list[tuple]:
        places = [i for i, (token, *_) in enumerate(row) if token == self.special.image_pad]
        if len(places) != len(pictures):
            raise PromptError(
                f"The prompt has {len(places)} places for images, but the number of images is {len(pictures)}; remove "
                "'<|image_pad|>' from the text you wrote."
            )
        row = list(row)
        for i, picture in zip(places, pictures):
            row[i] = ({"type": "image", "data": picture}, *row[i][1:])
        return row
