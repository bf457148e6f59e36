"""The texts around a prompt, and the tokenizer.

Special tokens are compared by id, never by name: ComfyUI's Qwen2.5 files call the id of `<|img|>` `<tool_response>`.
Brackets and `(word:1.2)` are plain text here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from .errors import CheckpointError, PromptError

SYSTEM_PROMPT = "You are a helpful assistant that generates high-quality images based on user instructions."
DROPPED_TEXT_SYSTEM_PROMPT = "You are a helpful assistant that generates images."
"""The system prompt of training samples whose text was dropped; inference never uses it."""

DEFAULT_NEGATIVE_PROMPT = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)

# Qwen2's rule for cutting text into words before byte-pair encoding.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

ASSISTANT_OPENING = "<|im_start|>assistant\n"
IMAGE_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
TURN_END = "<|im_end|>\n"


def system_turn(system: str = SYSTEM_PROMPT) -> str:
    """What every template begins with."""
    return f"<|im_start|>system\n{system}{TURN_END}"


def user_turn(text: str | None, n_images: int = 0) -> str:
    """What a user says, the images first and numbered from 1."""
    places = "".join(f"<img{i}>: {IMAGE_PLACE}" for i in range(1, n_images + 1))
    return f"<|im_start|>user\n{places}{text or ''}{TURN_END}"


def generation_prompt(text: str | None, *, system: str = SYSTEM_PROMPT) -> str:
    """The text that conditions image generation. None, as a negative prompt, is the empty prompt."""
    return system_turn(system) + user_turn(text)


def chat_prompt(text: str | None, n_images: int = 0, *, system: str = SYSTEM_PROMPT) -> str:
    """The text that asks for an answer, or conditions generation by a model that sees the `n_images` images."""
    return system_turn(system) + user_turn(text, n_images) + ASSISTANT_OPENING


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that steer the model. `img` announces a picture; None where the tokenizer has no such token."""

    endoftext: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    img: int | None

    @property
    def stop(self) -> tuple[int, ...]:
        """What ends an answer."""
        return (self.im_end, *self.announcement, self.endoftext)

    @property
    def announcement(self) -> tuple[int, ...]:
        """What announces a picture: one token, or none."""
        return () if self.img is None else (self.img,)

    @property
    def pad(self) -> int:
        """What fills up shorter prompts of a batch."""
        return self.endoftext


@dataclass(frozen=True)
class TokenBatch:
    """Prompts as ids [B, L] and mask [B, L] (1 = real), padded on the right; `truncated` were cut from each."""

    ids: Tensor
    mask: Tensor
    truncated: tuple[int, ...]

    def padded_left(self) -> "TokenBatch":
        """The same rows with their padding in front, as for writing."""
        shifts = (self.ids.shape[1] - self.mask.sum(dim=1)).tolist()
        ids, mask = (
            torch.stack([row.roll(shift) for row, shift in zip(rows, shifts)]) for rows in (self.ids, self.mask)
        )
        return TokenBatch(ids, mask, self.truncated)


class OmniGen2Tokenizer:
    """Qwen2.5's byte-level tokenizer, or any `tokenizer.json` that has Qwen's special tokens."""

    def __init__(self, tokenizer: Any):
        """Wraps a `tokenizers.Tokenizer`. Raises CheckpointError when it lacks a special token."""
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        names = {name: f"<|{name}|>" for name in SpecialIds.__dataclass_fields__}
        ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
        if ids["img"] is None:
            # Qwen's own files know the id that OmniGen2 gave to <|img|> by its former name.
            ids["img"] = tokenizer.token_to_id("<tool_response>")
        missing = [names[name] for name, value in ids.items() if value is None and name != "img"]
        if missing:
            raise CheckpointError(
                f"The tokenizer has no {', '.join(missing)}. Use the one in OmniGen2's processor folder, or Qwen2.5's."
            )
        self.special = SpecialIds(**ids)
        added = tokenizer.get_added_tokens_decoder()
        self._hidden = {number for number, token in added.items() if token.special} | set(ids.values())
        hidden_names = [token.content for number, token in added.items() if number in self._hidden]
        self._hidden_names = re.compile("|".join(map(re.escape, hidden_names)))

    @classmethod
    def from_folder(cls, folder: Path | str) -> "OmniGen2Tokenizer":
        """Reads `tokenizer.json`, else `vocab.json`, `merges.txt` and `tokenizer_config.json`, from `folder`.

        Raises CheckpointError when the files are missing or damaged.
        """
        from tokenizers import Tokenizer

        folder = Path(folder)
        try:
            if (folder / "tokenizer.json").is_file():
                return cls(Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8")))
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                return cls(_byte_level_bpe(folder))
        except CheckpointError:
            raise
        except Exception as error:  # the tokenizers library raises nothing more specific
            raise CheckpointError(
                f"The tokenizer files in {folder} cannot be read: {error}. Download them again."
            ) from error
        raise CheckpointError(
            f"There is no tokenizer in {folder}. Put tokenizer.json there, or vocab.json with merges.txt."
        )

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError when an encoder's `config.json` gives other ids to the special tokens."""
        for key, own in (
            ("image_token_id", self.special.image_pad),
            ("vision_start_token_id", self.special.vision_start),
            ("vision_end_token_id", self.special.vision_end),
        ):
            if config.get(key, own) != own:
                raise CheckpointError(
                    f"The encoder's config.json gives {key} {config[key]}, but the tokenizer has {own}. "
                    "Use the tokenizer of the same model."
                )

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Names of special tokens in it become those tokens, as in the reference."""
        # Half of a surrogate pair, which a browser may send, is no character and cannot be encoded.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens by their names in this tokenizer."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of `ids` for people to read: without special tokens, also those that only OmniGen2 holds for special."""
        return self.decode([token for token in ids if token not in self._hidden])

    def without_special(self, text: str) -> str:
        """What a model wrote, without names of special tokens: in another prompt, `encode` would make them tokens."""
        while (shorter := self._hidden_names.sub("", text)) != text:
            text = shorter
        return text

    def tokenize(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        *,
        image_tokens: Sequence[Sequence[int]] | None = None,
    ) -> TokenBatch:
        """Tokenizes whole templates and pads them to the longest.

        `max_length` cuts the end off, closing tokens included, as the reference does. `image_tokens` gives for every
        text the number of tokens of each of its images; its placeholders are then repeated, and nothing may be cut.
        Raises PromptError when placeholders and images do not match.
        """
        if not texts:
            raise PromptError("There is no prompt to tokenize. Give at least one, which may be empty.")
        rows = [self.encode(text) for text in texts]
        if image_tokens is not None:
            rows = [self._repeat_placeholders(row, counts) for row, counts in zip(rows, image_tokens, strict=True)]
            max_length = None
        kept = [row[:max_length] for row in rows]
        width = max(len(row) for row in kept)
        ids = [row + [self.special.pad] * (width - len(row)) for row in kept]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in kept]
        truncated = tuple(len(row) - len(cut) for row, cut in zip(rows, kept))
        return TokenBatch(torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long), truncated)

    def _repeat_placeholders(self, row: Sequence[int], counts: Sequence[int]) -> list[int]:
        places = row.count(self.special.image_pad)
        if places != len(counts):
            raise PromptError(
                f"The prompt has {places} places for images, but the number of images is {len(counts)}. "
                "Remove '<|image_pad|>' from the text you wrote."
            )
        remaining = iter(counts)
        repeated = []
        for token in row:
            repeated += [token] * (next(remaining) if token == self.special.image_pad else 1)
        return repeated


def _byte_level_bpe(folder: Path) -> Any:
    """A Qwen2 tokenizer from its slow form."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for number, token in sorted(_added_tokens(folder).items()):
        tokenizer.add_tokens([AddedToken(token["content"], normalized=False, special=token["special"])])
        if tokenizer.token_to_id(token["content"]) != number:
            raise CheckpointError(
                f"The tokenizer in {folder} gives {token['content']} the id {number}, which does not follow its "
                "vocabulary. vocab.json and tokenizer_config.json belong to different models."
            )
    return tokenizer


def _added_tokens(folder: Path) -> dict[int, dict[str, Any]]:
    tokens: dict[int, dict[str, Any]] = {}
    if (folder / "added_tokens.json").is_file():
        added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
        tokens = {int(number): {"content": content, "special": True} for content, number in added.items()}
    if (folder / "tokenizer_config.json").is_file():
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        for number, token in config.get("added_tokens_decoder", {}).items():
            tokens[int(number)] = {"content": token["content"], "special": bool(token.get("special", False))}
    return tokens
