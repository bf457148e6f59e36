"""A conversation as a value: what was said, and which pictures were shown, by the names of their files.

As JSON:

    {"format": "omnigen2-conversation", "version": 1, "turns": [
        {"role": "user", "text": "Draw a fox.", "images": []},
        {"role": "assistant", "text": "", "images": ["chat/fox_00001_.png"]}]}

A turn that lost pictures to the limits has "images_dropped", how many.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Callable

from .assistant import MAX_IMAGES
from .errors import ConversationError

FORMAT = "omnigen2-conversation"
VERSION = 1

MAX_TURNS = 1000
MAX_TEXT = 32_768
"""Characters in one turn."""
MAX_NAME = 512
"""Characters in the name of a file."""
MAX_JSON = 8_000_000
"""Characters of JSON that are parsed at all."""


class Role(str, Enum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Turn:
    """What one side said at once. An assistant's turn with images is one in which it drew.

    Attributes:
        role: Who speaks.
        text: Without special tokens or templates.
        images: Files by relative name with forward slashes, such as "chat/fox_00001_.png"; which folder they are in
            is for the host to know.
        images_dropped: How many pictures the turn had besides, which the limits took from it.

    Raises:
        ConversationError: Something is of the wrong type, too much, or a name that leads out of the folder.
    """

    role: Role
    text: str = ""
    images: tuple[str, ...] = ()
    images_dropped: int = 0

    def __post_init__(self) -> None:
        if self.role not in list(Role):
            raise ConversationError(f"The role is {self.role!r}; it must be 'user' or 'assistant'.")
        object.__setattr__(self, "role", Role(self.role))
        if not isinstance(self.text, str):
            raise ConversationError(f"The text is {_short(self.text)}; it must be a string.")
        if len(self.text) > MAX_TEXT:
            raise ConversationError(f"The text has {len(self.text)} characters; at most {MAX_TEXT} fit, so shorten it.")
        if not isinstance(self.images, (list, tuple)):
            raise ConversationError(f"The images are {_short(self.images)}; they must be a list of file names.")
        object.__setattr__(self, "images", tuple(self.images))
        if len(self.images) > MAX_IMAGES:
            raise ConversationError(
                f"There are {len(self.images)} images; one turn may have {MAX_IMAGES}, so remove some."
            )
        for name in self.images:
            _check_name(name)
        dropped = self.images_dropped
        if isinstance(dropped, bool) or not isinstance(dropped, int) or not 0 <= dropped <= MAX_IMAGES:
            raise ConversationError(f"images_dropped is {_short(dropped)}; it must be a number from 0 to {MAX_IMAGES}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {"role": self.role.value, "text": self.text, "images": list(self.images)}
        return values | ({"images_dropped": self.images_dropped} if self.images_dropped else {})

    @classmethod
    def from_dict(cls, values: Any) -> "Turn":
        """The inverse of `to_dict`; only `role` must be there. Raises ConversationError for anything else."""
        _check_object(values, {"role"}, {"text", "images", "images_dropped"})
        return cls(**values)


@dataclass(frozen=True)
class Conversation:
    """Turns of a user and an assistant, one after the other, a user's first. A value: it is never changed in place.

    Raises ConversationError when the roles do not alternate or there are more than 1000 turns.
    """

    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        if len(self.turns) > MAX_TURNS:
            raise ConversationError(
                f"The conversation has {len(self.turns)} turns; at most {MAX_TURNS} fit. Begin a new one."
            )
        for number, turn in enumerate(self.turns):
            expected = (Role.USER, Role.ASSISTANT)[number % 2]
            if turn.role is not expected:
                raise ConversationError(
                    f"turns[{number}] is the {turn.role.value}'s, but it is the {expected.value}'s turn; a user begins "
                    "and the two alternate."
                )

    def with_turn(self, turn: Turn) -> "Conversation":
        """The conversation with one more turn at its end."""
        return Conversation((*self.turns, turn))

    @property
    def images(self) -> tuple[str, ...]:
        """Files of all turns, the oldest first; one that is shown twice is there twice."""
        return tuple(name for turn in self.turns for name in turn.images)

    def to_json(self) -> str:
        """One line of JSON in ASCII."""
        return json.dumps({"format": FORMAT, "version": VERSION, "turns": [turn.to_dict() for turn in self.turns]})

    @classmethod
    def from_json(cls, text: str) -> "Conversation":
        """Reads what `to_json` wrote; an empty text is an empty conversation.

        Raises ConversationError that says where it is malformed.
        """
        if not text.strip():
            return cls()
        if len(text) > MAX_JSON:
            raise ConversationError(
                f"The conversation has {len(text)} characters of JSON; at most {MAX_JSON} are read. Begin a new one."
            )
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConversationError(
                f"The conversation is no JSON: {error.msg} in line {error.lineno}, column {error.colno}. Correct it, "
                "or empty it to begin anew."
            ) from error
        except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
            raise ConversationError("The conversation's JSON is no conversation; empty it to begin anew.") from error
        _check_object(values, {"format", "version", "turns"}, set())
        if values["format"] != FORMAT:
            raise ConversationError(f"The JSON's format is {_short(values['format'])}; a conversation's is {FORMAT!r}.")
        version = values["version"]
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ConversationError(f"The conversation's version is {_short(version)}; it must be a number from 1.")
        if version > VERSION:
            raise ConversationError(
                f"The conversation has version {version}, and this pack reads up to {VERSION}; update the pack."
            )
        if not isinstance(values["turns"], list):
            raise ConversationError(f"The conversation's turns are {_short(values['turns'])}; they must be a list.")
        turns = []
        for number, value in enumerate(values["turns"]):
            try:
                turns.append(Turn.from_dict(value))
            except ConversationError as error:
                raise ConversationError(f"turns[{number}] cannot be used. {error}") from error
        return cls(tuple(turns))


@dataclass(frozen=True)
class Limits:
    """How much of a conversation is kept.

    Attributes:
        turns: Of both sides, the answer to come included; at least 2.
        images: In all turns together. Those of the newest message always stay.
        tokens: Of the whole prompt with its images, of which one takes at most 16384; the newest message may have more.
        message_tokens: Of the prompt of the newest message alone, which is refused above it; at least `tokens`.
    """

    turns: int = 40
    images: int = 8
    tokens: int = 20480
    message_tokens: int = 128_000

    def __post_init__(self) -> None:
        for name, least in (("turns", 2), ("images", 0), ("tokens", 1), ("message_tokens", self.tokens)):
            if getattr(self, name) < least:
                raise ConversationError(f"The limit on {name} is {getattr(self, name)}; set it to {least} or more.")


@dataclass(frozen=True)
class Dropped:
    """What a conversation lost: files of images, in the order in which they went, and how many turns."""

    images: tuple[str, ...] = ()
    turns: int = 0

    def notes(self) -> list[str]:
        """One sentence about the images and one about the turns, for people; empty when nothing was dropped."""
        notes = []
        if self.images:
            notes.append(f"To stay within the limits, the oldest images were dropped: {', '.join(self.images)}.")
        if self.turns:
            notes.append(f"To stay within the limits, the oldest {self.turns} turns were dropped.")
        return notes


def without_images(conversation: Conversation, names: set[str]) -> Conversation:
    """The conversation whose turns no longer show the files `names`, and count them as dropped."""
    return Conversation(
        tuple(_showing(turn, tuple(name for name in turn.images if name not in names)) for turn in conversation.turns)
    )


def bounded(
    conversation: Conversation, limits: Limits, count_tokens: Callable[[Conversation], int]
) -> tuple[Conversation, Dropped]:
    """A conversation that ends with a user's message, cut down to the limits, and what that cost.

    The oldest images go first, then the oldest turns, a message with its answer at a time; the newest message stays
    whole. `count_tokens` gives the length of a conversation's prompt. Raises ConversationError when the newest message
    alone is longer than `limits.message_tokens`.
    """
    images: list[str] = []
    turns = 0

    def drop_image() -> bool:
        nonlocal conversation
        for number, turn in enumerate(conversation.turns[:-1]):
            if turn.images:
                images.append(turn.images[0])
                rest = conversation.turns
                conversation = Conversation((*rest[:number], _showing(turn, turn.images[1:]), *rest[number + 1 :]))
                return True
        return False

    def drop_exchange() -> bool:
        nonlocal conversation, turns
        if len(conversation.turns) < 3:
            return False
        images.extend(name for turn in conversation.turns[:2] for name in turn.images)
        conversation, turns = Conversation(conversation.turns[2:]), turns + 2
        return True

    while len(conversation.images) > limits.images and drop_image():
        pass
    while len(conversation.turns) + 1 > limits.turns and drop_exchange():
        pass
    while (tokens := count_tokens(conversation)) > limits.tokens and (drop_image() or drop_exchange()):
        pass
    if tokens > limits.message_tokens:
        raise ConversationError(
            f"The message with its images has {tokens} tokens and may have {limits.message_tokens}; shorten it or use "
            "fewer or smaller images."
        )
    return conversation, Dropped(tuple(images), turns)


def _showing(turn: Turn, kept: tuple[str, ...]) -> Turn:
    """The turn with only these of its images, the others counted as dropped."""
    lost = turn.images_dropped + len(turn.images) - len(kept)
    return replace(turn, images=kept, images_dropped=min(MAX_IMAGES, lost))


def _check_object(values: Any, needed: set[str], optional: set[str]) -> None:
    if not isinstance(values, dict):
        raise ConversationError(f"It is {_short(values)}; it must be a JSON object with {', '.join(sorted(needed))}.")
    missing, unknown = needed - set(values), set(values) - needed - optional
    if missing:
        raise ConversationError(f"It lacks {', '.join(sorted(missing))}; save the conversation again, or empty it.")
    if unknown:
        names = ", ".join(_short(name) for name in sorted(unknown)[:3])
        raise ConversationError(f"It has {names}, which is not known here; remove it.")


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name or len(name) > MAX_NAME:
        raise ConversationError(f"An image is {_short(name)}; it must be a file name of 1 to {MAX_NAME} characters.")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(c in "\\:" or not c.isprintable() for c in name):
        raise ConversationError(
            f"The image {_short(name)} is no relative file name; write it like 'folder/picture.png', without '..'."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
