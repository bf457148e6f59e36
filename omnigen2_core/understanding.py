"""Questions about pictures, answered in words."""

from __future__ import annotations

from typing import Sequence

from PIL import Image

from .assistant import MAX_IMAGES, Answer, Assistant, OnStep, OnText, check_batch, check_image_count, pictures_of
from .generation import GREEDY, Sampling
from .prompts import chat_prompt

MAX_NEW_TOKENS = 256
"""The reference's limit on an answer."""


def ask(
    assistant: Assistant,
    questions: str | Sequence[str],
    images: Sequence[Sequence[Image.Image]] | None = None,
    *,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch: int = 4,
    max_images: int | None = MAX_IMAGES,
    on_text: OnText | None = None,
    on_step: OnStep | None = None,
) -> list[Answer]:
    """Each question put in the chat template with its own images, and what the model writes.

    The token that announces a picture is never written: a question gets its answer in words.

    Args:
        questions: One question or several; in which order and company they are asked changes no answer.
        images: For every question the list of its pictures, of any mode and size, so for one question [[picture]];
            "image 1" in a question is its first. None is no pictures.
        sampling: How tokens are chosen; the likeliest each time without it.
        seed: Of the first question, any whole number; it counts up from there, modulo 2**64.
        max_new_tokens: At least 1; an answer that is longer is cut off there and not `complete`. With its prompt it
            may be as long as the model reads.
        batch: Questions in one forward pass, at least 1. Every one carries its own images, which memory has to hold.
        max_images: Pictures that a question may have; None sets no limit.
        on_text: See `OnText`; rows are numbers of questions.
        on_step: See `OnStep`; it counts from 1 again with every batch.

    Raises:
        CheckpointError: There are images and the model cannot see.
        PromptError: A question holds an image placeholder, or is too long with its images and answer; there are not as
            many lists of pictures as questions; `batch` or `max_new_tokens` is below 1.
        ReferenceImageError: A question has more than `max_images`, or a picture that is not in a list.
        SizeError: A picture is too thin.
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    check_batch(batch)
    shown = pictures_of(questions, images)
    for own in shown:
        check_image_count(len(own), max_images)
    answers: list[Answer] = []
    for start in range(0, len(questions), batch):
        some, pictures = questions[start : start + batch], shown[start : start + batch]
        answers += assistant.write(
            [chat_prompt(text, len(own)) for text, own in zip(some, pictures)],
            pictures,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seeds=[seed + start + row for row in range(len(some))],
            suppress_ids=assistant.tokenizer.special.announcement,
            on_text=None if on_text is None else lambda row, piece, first=start: on_text(first + row, piece),
            on_step=on_step,
        )
    return answers
