"""A short prompt in any language rewritten as a detailed English one, by the model that will read it.

The paper has a language model rewrite users' prompts; it does not publish the words by which it asks. These are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Sequence

from PIL import Image

from .assistant import Assistant, OnStep, check_image_count
from .english import is_english
from .errors import PromptError
from .generation import GREEDY, Sampling, readable
from .profile import PUBLISHED
from .prompts import OmniGen2Tokenizer, chat_prompt, generation_prompt

SYSTEM = "You are a writer of prompts for an image generator. You answer with the prompt alone."

DRAW = """Rewrite this request as a detailed prompt for one picture:
{request}

Write in English, whatever the language of the request. Keep every subject, number, colour, place and style that it \
names, and contradict nothing. Leave words in quotation marks as they are. Add what the request leaves open and a \
painter would need: how the subjects look, the surroundings, the composition, the light, the style. Write one \
paragraph of at most {words} words, and nothing else."""

WITH_REFERENCES = """{images} given to an image generator together with this request:
{request}

Look at what is given, and rewrite the request as a detailed instruction. Write in English, whatever the language of \
the request. Call the images by their numbers, as in "the dog from image 1", and describe what is meant in each so \
that it cannot be mistaken for anything else there. Say exactly what changes or comes together, and where. Ask for no \
change that the request does not ask for, and leave words in quotation marks as they are. Write one paragraph of at \
most {words} words, and nothing else."""

WORDS = 120
MAX_NEW_TOKENS = 320

_SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s|$)|[。！？]+["'”’」』）]*""")
_LABEL = re.compile(r"^(?:here is [^:\n]*|(?:\w+ ){0,2}(?:prompt|instruction)):\s+", re.IGNORECASE)
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("「", "」"))


@dataclass(frozen=True)
class Enhanced:
    """A rewritten prompt. `tokens` are all that the encoder reads, template included; `notes` tell what went wrong."""

    text: str
    tokens: int
    notes: tuple[str, ...] = ()


def enhance_prompt(
    assistant: Assistant,
    prompt: str,
    images: Sequence[Image.Image] = (),
    *,
    max_text_tokens: int = PUBLISHED.max_text_tokens,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    on_text: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
) -> Enhanced:
    """The detailed English prompt that the model makes of `prompt`, never longer than the encoder reads.

    Where the model writes nothing, the prompt stays as it was, and a note says so.

    Args:
        prompt: In any language.
        images: The references that the picture will be drawn with, in their order.
        max_text_tokens: What the encoder reads at most, template included (see `ModelProfile`).
        on_text: Gets the model's words as they come, which the result tidies up.
        sampling, on_step: See `ask`.
        seed: Any whole number, modulo 2**64; counts where `sampling` is not greedy.
        max_new_tokens: Tokens after which the model is stopped, at least 1.

    Raises:
        PromptError: The prompt is empty, holds an image placeholder or is too long with its images and answer;
            `max_text_tokens` has no room for one; or `max_new_tokens` is below 1.
        CheckpointError, ReferenceImageError, SizeError: As `ask` does.
    """
    if not prompt.strip():
        raise PromptError("The prompt to enhance is empty; write in a few words what to draw or to change.")
    check_image_count(len(images))
    empty = count_tokens(assistant.tokenizer, "")
    if max_text_tokens <= empty:
        raise PromptError(f"The encoder cannot read a prompt in {max_text_tokens} tokens; allow more than {empty}.")
    [answer] = assistant.write(
        [chat_prompt(_request(prompt, len(images)), len(images), system=SYSTEM)],
        [images],
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seeds=[seed],
        suppress_ids=assistant.tokenizer.special.announcement,
        on_text=None if on_text is None else lambda _, piece: on_text(piece),
        on_step=on_step,
    )
    notes = []
    text = _tidy(assistant.tokenizer.without_special(answer.text))
    if not text:
        text = prompt.strip()
        notes.append("The model wrote no prompt, so yours is used as it is.")
    else:
        if not is_english(text):
            notes.append("The model did not write in English, which OmniGen2 follows best. Try another seed, or edit the prompt.")
        if not answer.complete:
            text = _to_sentence_end(text)
            notes.append(f"The model was stopped after {max_new_tokens} tokens; its last, unfinished sentence was cut off.")
    kept = fit_prompt(assistant.tokenizer, text, max_text_tokens)
    if kept != text:
        length = count_tokens(assistant.tokenizer, text)
        notes.append(
            f"The prompt had {length} tokens and the encoder reads {max_text_tokens}; this was cut off at the end: "
            f"{text[len(kept) :].strip()}"
        )
    return Enhanced(kept, count_tokens(assistant.tokenizer, kept), tuple(notes))


def count_tokens(tokenizer: OmniGen2Tokenizer, prompt: str) -> int:
    """How many tokens the encoder reads for a prompt, template included."""
    return len(tokenizer.encode(generation_prompt(prompt)))


def fit_prompt(tokenizer: OmniGen2Tokenizer, prompt: str, limit: int) -> str:
    """The longest beginning of a prompt that in its template has at most `limit` tokens and ends with a sentence.

    Where not even its first sentence fits, it ends with a word, and where there are no words, with a character.
    """
    if count_tokens(tokenizer, prompt) <= limit:
        return prompt
    for end in reversed([match.end() for match in _SENTENCE_END.finditer(prompt)]):
        if count_tokens(tokenizer, prompt[:end]) <= limit:
            return prompt[:end]
    ids = tokenizer.encode(prompt)
    # Where the text meets the template, a token or two may join with it.
    room = limit - count_tokens(tokenizer, "") + 2
    for length in range(min(room, len(ids)), 0, -1):
        beginning = readable(tokenizer, ids[:length])
        if count_tokens(tokenizer, beginning) <= limit:
            return _to_word_end(beginning)
    return ""


def _request(prompt: str, references: int) -> str:
    if not references:
        return DRAW.format(request=prompt, words=WORDS)
    images = "Image 1 is" if references == 1 else f"Images 1 to {references} are"
    return WITH_REFERENCES.format(images=images, request=prompt, words=WORDS)


def _tidy(answer: str) -> str:
    """The prompt alone: one line, without a label or quotation marks around all of it."""
    text = _LABEL.sub("", " ".join(answer.split()))
    for opening, closing in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == opening and text[-1] == closing and not {opening, closing} & set(inner):
            return inner.strip()
    return text


def _to_sentence_end(text: str) -> str:
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else _to_word_end(text)


def _to_word_end(text: str) -> str:
    """`text` without its last word, which may be a part of one, if there are others."""
    return text.rstrip().rsplit(None, 1)[0] if len(text.split()) > 1 else text.rstrip()
