"""Talking with the model, which decides in every turn whether it answers in words or draws.

One turn is the reference's chat pipeline: the chat template, at most 256 new tokens, and a picture when the answer
begins with `<|img|>` (by id: tokenizers disagree about its name). The encoding for the picture is that of the
whole template with the images seen, and the negative prompt goes through the chat template too.

The reference's chat has no second turn, so the rest is ours: earlier turns stand before the newest message in the same
template, each answer closed by `<|im_end|>`; every message numbers its own images from 1; an answer that drew is
`<|img|>` followed by the picture, so that it can be talked about; a picture is drawn from the newest message alone, as
the reference would draw it, unless earlier turns are asked for; and `<|img|>` never shows in a text, while the
reference leaves one at the end of an answer in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Callable, Sequence

from PIL import Image

from .assistant import Answer, Assistant, OnStep
from .conversation import MAX_TEXT, Conversation, Dropped, Limits, Role, Turn, bounded, without_images
from .errors import ConversationError
from .generation import GREEDY, Sampling
from .images import to_rgb
from .pipeline import EncodedText
from .prompts import (
    ASSISTANT_OPENING,
    DEFAULT_NEGATIVE_PROMPT,
    IMAGE_PLACE,
    TURN_END,
    OmniGen2Tokenizer,
    chat_prompt,
    system_turn,
    user_turn,
)
from .understanding import MAX_NEW_TOKENS
from .vision import visual_tokens

Load = Callable[[str], Image.Image]
"""Opens a picture by the name that a conversation has for it. Raises OSError when there is none."""


class Mode(str, Enum):
    """Who decides whether the model draws. `AUTO` leaves it to the model.

    `Mode(word)` raises ConversationError for a word that is none of these.
    """

    AUTO = "auto"
    TEXT = "text"
    DRAW = "draw"

    @classmethod
    def _missing_(cls, value: object) -> "Mode":
        raise ConversationError(f"There is no mode {value!r}; choose one of {', '.join(mode.value for mode in cls)}.")


@dataclass(frozen=True)
class Drawing:
    """What is needed to draw in a chat.

    Attributes:
        prompt: The whole template, of which `text` is the encoding, as the model read it.
        text: Hidden states [1, K, D] and mask [1, K] without the rows of image tokens.
        negative: The same of the negative prompt, in the chat template without images.
        references: The pictures of the newest message, for the autoencoder, in RGB.
    """

    prompt: str
    text: EncodedText
    negative: EncodedText
    references: tuple[Image.Image, ...]


Draw = Callable[[Drawing], Sequence[str]]
"""Draws, keeps the pictures (one to five), and returns their names, by which `Load` finds them again."""


@dataclass(frozen=True)
class Reply:
    """What became of one message.

    Attributes:
        conversation: The conversation with the message and its answer at the end, cut down to the limits.
        answer: What the model wrote; None when it was told to draw and wrote nothing.
        dropped: What the limits took from the conversation.
        notes: For people, one sentence each: what was dropped, is gone, or was cut off.
    """

    conversation: Conversation
    answer: Answer | None
    dropped: Dropped
    notes: tuple[str, ...]

    @property
    def turn(self) -> Turn:
        """The assistant's."""
        return self.conversation.turns[-1]


def conversation_prompt(turns: Sequence[Turn], tokenizer: OmniGen2Tokenizer) -> str:
    """The template of turns that end with a user's, open for the answer; of one turn, the reference's.

    Every image of every turn has its placeholder, in order. See this module's description for what is ours.
    """
    announcement = tokenizer.decode(tokenizer.special.announcement)
    parts = [system_turn()]
    for turn in turns:
        if turn.role is Role.USER:
            parts += [user_turn(turn.text, len(turn.images)), ASSISTANT_OPENING]
            continue
        if turn.images or turn.images_dropped:
            parts += [announcement, IMAGE_PLACE * len(turn.images)]
        parts += [tokenizer.without_special(turn.text), TURN_END]
    return "".join(parts)


def reply(
    assistant: Assistant,
    conversation: Conversation,
    message: str,
    images: Sequence[str] = (),
    *,
    load: Load,
    draw: Draw,
    mode: Mode | str = Mode.AUTO,
    negative_prompt: str | None = DEFAULT_NEGATIVE_PROMPT,
    draw_from_all_turns: bool = False,
    limits: Limits = Limits(),
    sampling: Sampling = GREEDY,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    on_text: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
) -> Reply:
    """One turn: the user's message, and what the model says or draws.

    An exception of a callback ends the turn; conversation and model are then as they were.

    Args:
        conversation: Everything before the message. It is not changed.
        message: What the user says.
        images: What the user shows with it: up to five names.
        load, draw: See `Load` and `Draw`.
        mode: A `Mode` or its word. In `TEXT` the token that announces a picture cannot be written; in `DRAW` nothing is written.
        negative_prompt: What to keep away from in a picture; None is the empty prompt.
        draw_from_all_turns: Whether the picture's prompt holds the earlier turns too. The references are those of the
            newest message either way.
        limits: How much of the conversation is kept.
        sampling, seed, max_new_tokens, on_step: See `ask`.
        on_text: Gets the answer's text as it comes.

    Raises:
        ConversationError: The message is empty or too long, shows a picture that is gone, `draw` gave no picture, or there
            is no such mode.
        CheckpointError: There are images and the model cannot see.
        PromptError: The message holds an image placeholder, or the prompt is longer than the model reads.
        SizeError: A picture is too thin.
    """
    mode = Mode(mode)
    newest = Turn(Role.USER, message, tuple(images))
    if not message.strip() and not images:
        raise ConversationError("The message is empty; write something or show a picture.")
    gallery = _Gallery(load, newest.images)
    asked, dropped = bounded(
        conversation.with_turn(newest), limits, lambda kept: _count_tokens(assistant, gallery.present(kept), gallery)
    )
    asked = gallery.present(asked)
    notes = dropped.notes()
    if gallery.missing:
        notes.append(f"These images of earlier turns are gone: {', '.join(sorted(gallery.missing))}.")

    announcement = assistant.tokenizer.special.announcement
    answer = None
    drawn = mode is Mode.DRAW
    if not drawn:
        [answer] = assistant.write(
            [conversation_prompt(asked.turns, assistant.tokenizer)],
            [gallery.pictures(asked.turns)],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seeds=[seed],
            suppress_ids=announcement if mode is Mode.TEXT else (),
            on_text=None if on_text is None else lambda _, piece: on_text(piece),
            on_step=on_step,
        )
        drawn = answer.tokens[0] in announcement
    if drawn:
        turns = asked.turns if draw_from_all_turns else asked.turns[-1:]
        names = tuple(draw(_drawing(assistant, turns, gallery, negative_prompt)))
        if not names:
            raise ConversationError("The drawing gave no picture; it must keep at least one and return its name.")
        said = Turn(Role.ASSISTANT, "", names)
    else:
        said = Turn(Role.ASSISTANT, answer.text[:MAX_TEXT])
        if not answer.complete:
            notes.append(f"The answer was cut off after {max_new_tokens} tokens.")
        elif not said.text.strip():
            notes.append("The model ended its turn without a word; ask in other words.")
    return Reply(asked.with_turn(said), answer, dropped, tuple(notes))


class _Gallery:
    """Pictures by name, each opened once and only when the limits leave it in."""

    def __init__(self, load: Load, needed: Sequence[str]):
        self._load = load
        self._opened: dict[str, Image.Image] = {}
        self.missing: set[str] = set()
        for name in needed:
            try:
                self._opened[name] = to_rgb(load(name))
            except OSError as error:
                raise ConversationError(
                    f"The picture {name!r} cannot be opened: {error}. Show it again, or send the message without it."
                ) from error

    def present(self, conversation: Conversation) -> Conversation:
        """The conversation without pictures that are gone."""
        for name in conversation.images:
            if name not in self._opened and name not in self.missing:
                try:
                    self._opened[name] = to_rgb(self._load(name))
                except OSError:
                    self.missing.add(name)
        return without_images(conversation, self.missing)

    def pictures(self, turns: Sequence[Turn]) -> list[Image.Image]:
        """Those of the turns, in the order of their placeholders."""
        return [self._opened[name] for turn in turns for name in turn.images]


def _count_tokens(assistant: Assistant, conversation: Conversation, gallery: _Gallery) -> int:
    text = assistant.tokenizer.encode(conversation_prompt(conversation.turns, assistant.tokenizer))
    seen = [visual_tokens(*picture.size, assistant.pixels) for picture in gallery.pictures(conversation.turns)]
    return len(text) - len(seen) + sum(seen)


def _drawing(
    assistant: Assistant, turns: Sequence[Turn], gallery: _Gallery, negative_prompt: str | None
) -> Drawing:
    prompt = conversation_prompt(turns, assistant.tokenizer)
    return Drawing(
        prompt,
        EncodedText(*assistant.encode(prompt, gallery.pictures(turns))),
        EncodedText(*assistant.encode(chat_prompt(negative_prompt))),
        tuple(gallery.pictures(turns[-1:])),
    )
