"""Qwen2.5-VL with all that is needed to talk with it: prompts with pictures in, written answers out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Callable, Collection, Sequence

import torch
from PIL import Image
from torch import Tensor

from .errors import CheckpointError, PromptError, ReferenceImageError
from .generation import GREEDY, Sampler, Sampling, TextStream, readable
from .images import picture_lists, to_rgb
from .mllm import VISION_MISSING, Qwen2_5_VL, encode_text, encode_with_images, generate_tokens
from .prefill import read_prompts
from .prompts import OmniGen2Tokenizer
from .vision import PixelConfig, preprocess, token_counts

MAX_IMAGES = 5
"""Pictures in one message: as many as the diffusion transformer takes."""

KEPT_PICTURES = 8
"""Pictures whose visual tokens are kept."""

KEPT_TOKENS = 16384
"""Visual tokens that are kept of all pictures together: 64 MiB of the published encoder in bf16. A picture of 1024x1024
pixels has 1369, one of 12 megapixels about 15,000."""

OnText = Callable[[int, str], None]
"""Gets the row of the batch and the text that it has gained. May raise to cancel."""

OnStep = Callable[[int], None]
"""Gets the number of tokens written so far, after every step. May raise to cancel."""


@dataclass(frozen=True)
class Answer:
    """What was written after one prompt.

    Attributes:
        text: Without special tokens, and never with half a character at the end.
        tokens: All ids, with the stop token that ended the answer.
        complete: Whether the model ended it itself; else it ran into the length limit.
    """

    text: str
    tokens: tuple[int, ...]
    complete: bool


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as the model takes them: ids and mask [B, L] padded on the left, visual tokens and grids of all images."""

    ids: Tensor
    mask: Tensor
    visual: Tensor | None
    grid: Tensor | None


@dataclass(frozen=True)
class Assistant:
    """A model with its tokenizer and its `preprocessor_config.json`.

    `device` is where it computes, which a host that moves weights at will has to say; without it, where the weights
    are. The last pictures are looked at once, however often something is asked about them, so weights that change need
    an assistant of their own, or `forget`.

    Raises:
        CheckpointError: `pixels` makes other patches than the model takes.
    """

    model: Qwen2_5_VL
    tokenizer: OmniGen2Tokenizer
    pixels: PixelConfig = PixelConfig()
    device: torch.device | None = None
    _seen: OrderedDict[tuple, tuple[Tensor, Tensor]] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)
    """Visual tokens and grids of the pictures looked at last, by size and content."""

    def __post_init__(self) -> None:
        vision = self.model.config.vision
        for name, taken in (
            ("patch_size", vision["patch_size"]),
            ("temporal_patch_size", vision["temporal_patch_size"]),
            ("merge_size", vision["spatial_merge_size"]),
        ):
            made = getattr(self.pixels, name)
            if made != taken:
                raise CheckpointError(
                    f"The pixels are prepared with {name} {made}, and the encoder takes {taken}; use the "
                    "preprocessor_config.json of the model's own folder, as OmniGen2Pipeline.assistant() does."
                )

    @torch.no_grad()
    def prepare(self, chats: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> PromptBatch:
        """Whole templates and for each its pictures, of any mode and size, in the order of their placeholders.

        The model looks at pictures that it has not seen lately.

        Raises:
            CheckpointError: There are pictures and the model cannot see.
            PromptError: A text of the user holds an image placeholder.
            SizeError: A picture is too thin.
        """
        device = self.device or next(self.model.parameters()).device
        pictures = [to_rgb(picture) for own in images for picture in own]
        visual = grid = None
        counts: list[list[int]] = [[] for _ in chats]
        if pictures:
            visual, grid = self._look(pictures, device)
            remaining = iter(token_counts(grid, self.pixels.merge_size))
            counts = [[next(remaining) for _ in own] for own in images]
        tokens = self.tokenizer.tokenize(chats, image_tokens=counts).padded_left()
        return PromptBatch(tokens.ids.to(device), tokens.mask.to(device), visual, grid)

    def forget(self) -> None:
        """Drops what is kept of pictures."""
        self._seen.clear()

    def _look(self, pictures: Sequence[Image.Image], device: torch.device) -> tuple[Tensor, Tensor]:
        """Visual tokens and grids of RGB pictures. Those that are new are looked at one by one: what that takes grows with
        all that is looked at together, and pictures do not see each other.
        """
        if not self.model.has_vision:
            raise CheckpointError(VISION_MISSING)
        keys = [(picture.size, blake2b(picture.tobytes()).digest()) for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures) if key not in self._seen}
        for key, picture in new.items():
            values, grid = preprocess([picture], self.pixels)
            self._seen[key] = self.model.look(values.to(device), grid), grid[0]
        for key in keys:
            self._seen.move_to_end(key)
        self._drop_oldest(len(set(keys)))
        visual, grids = zip(*(self._seen[key] for key in keys))
        return torch.cat(visual), torch.stack(grids)

    def _drop_oldest(self, newest: int) -> None:
        """Keeps to `KEPT_PICTURES` and `KEPT_TOKENS`, but always the `newest` pictures, those of the prompt at hand."""
        while len(self._seen) > newest and (
            len(self._seen) > KEPT_PICTURES or sum(len(tokens) for tokens, _ in self._seen.values()) > KEPT_TOKENS
        ):
            self._seen.popitem(last=False)

    def write(
        self,
        chats: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        seeds: Sequence[int] = (),
        suppress_ids: Collection[int] = (),
        on_text: OnText | None = None,
        on_step: OnStep | None = None,
    ) -> list[Answer]:
        """One answer after each template, all in one batch; each is what it would be alone.

        `max_new_tokens` is at least 1. `seeds`, whole numbers, one a row, are needed unless `sampling` is greedy.
        `suppress_ids` are never written. An exception of a callback ends the run, frees what it held, and leaves the
        model as it was.

        Raises:
            CheckpointError, SizeError: As `prepare` does.
            GenerationError: `sampling` is not greedy, and there is not one seed a row.
            PromptError: As `prepare` does, or prompt and answer are longer than the model reads.
        """
        prompt = self.prepare(chats, images)
        self._check_length(prompt, max_new_tokens)
        stop = self.tokenizer.special.stop
        streams = [TextStream(self.tokenizer) for _ in chats]

        def on_token(written: list[list[int]]) -> None:
            if on_text is not None:
                for row, (stream, tokens) in enumerate(zip(streams, written)):
                    piece = stream.update(tokens)
                    if piece:
                        on_text(row, piece)
            if on_step is not None:
                on_step(max(map(len, written)))

        plain = sampling.greedy and sampling.repetition_penalty == 1
        rows = generate_tokens(
            self.model,
            prompt.ids,
            prompt.mask,
            grid=prompt.grid,
            visual=prompt.visual,
            max_new_tokens=max_new_tokens,
            stop_ids=stop,
            suppress_ids=suppress_ids,
            on_token=on_token,
            sample=None if plain else Sampler(sampling, seeds, prompt.mask),
        )
        return [Answer(readable(self.tokenizer, row), tuple(row), bool(row) and row[-1] in stop) for row in rows]

    @torch.no_grad()
    def first_log_probabilities(self, chats: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Tensor:
        """fp32 log-probabilities [B, vocabulary] of the token that the answer after each template would begin with.

        One forward pass, in which nothing is written. Raises what `prepare` raises.
        """
        prompt = self.prepare(chats, images)
        states, _, _ = read_prompts(self.model, prompt.ids, prompt.mask, prompt.grid, prompt.visual)
        return self.model.logits(states).float().log_softmax(dim=-1)

    @torch.no_grad()
    def encode(self, chat: str, images: Sequence[Image.Image] = ()) -> tuple[Tensor, Tensor]:
        """One template as the diffusion transformer reads it in the chat pipeline: hidden [1, K, D] and mask [1, K].

        The model looks at the images; their tokens are then dropped. Nothing is cut. Raises what `prepare` raises.
        """
        prompt = self.prepare([chat], [images])
        if prompt.visual is None:
            return encode_text(self.model, prompt.ids, prompt.mask), prompt.mask
        return encode_with_images(self.model, prompt.ids, prompt.mask, None, prompt.grid, visual=prompt.visual)

    def _check_length(self, prompt: PromptBatch, max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise PromptError(f"An answer of at most {max_new_tokens} tokens cannot be written; allow at least 1.")
        limit = self.model.config.text["max_position_embeddings"]
        length = prompt.ids.shape[1]
        if length + max_new_tokens > limit:
            advice = (
                f"Allow the answer {limit - length} tokens or fewer."
                if length < min(max_new_tokens, limit)
                else "Shorten it, or use fewer or smaller images."
            )
            raise PromptError(
                f"The prompt with its images has {length} tokens, which with {max_new_tokens} for the answer is more "
                f"than the {limit} that the model reads. {advice}"
            )


def check_batch(batch: int) -> None:
    """Raises PromptError unless at least one question goes through the model at a time."""
    if batch < 1:
        raise PromptError(f"batch is {batch}; ask at least 1 question at a time.")


def pictures_of(
    questions: Sequence[str], images: Sequence[Sequence[Image.Image] | None] | None
) -> list[list[Image.Image]]:
    """For every question the list of its pictures; there are none without `images`.

    Raises:
        PromptError: There are not as many lists as questions.
        ReferenceImageError: A picture stands where a list of pictures belongs.
    """
    if images is None:
        return [[] for _ in questions]
    shown = picture_lists(images, "question")
    if len(shown) != len(questions):
        raise PromptError(
            f"Got images for {len(shown)} questions and {len(questions)} questions; give one list, which may be empty, "
            "a question."
        )
    return shown


def check_image_count(count: int, most: int | None = MAX_IMAGES) -> None:
    """Raises ReferenceImageError for more pictures than one message may have; None sets no limit."""
    if most is not None and count > most:
        raise ReferenceImageError(f"Got {count} images for one message; the model takes at most {most}. Remove some.")
