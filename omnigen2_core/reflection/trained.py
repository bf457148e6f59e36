"""Reflection by checkpoints that were fine-tuned to reflect.

The paper trains on one interleaved sequence: instruction, image, reflection, image, and so on. The line format of its
reflection data (X2I2) was not found, so the exact texts of the authors' sequence are unknown; nor were weights trained
on it published. The form used here instead takes OmniGen2's own chat template, in which `<|img|>` announces a picture
and `<|im_end|>` ends a turn:

    system, user: [references] instruction, assistant: <|img|>PICTURE reflection<|img|>PICTURE reflection ... <|im_end|>

where PICTURE is one vision block. So the verdict is no word that could be misread: after looking at its picture the
model writes what is wrong and announces another picture (not satisfied), or ends its turn (satisfied). Weights that
were not trained so end their turn after any words, and would seem satisfied with everything. The last line of
a reflection is the correction, the lines before it tell the problem; a single line is both. A checkpoint that was
trained on another form needs an adapter of its own beside this one, behind the same `Reflector`.

Such a checkpoint is taught to say yes or no to the whole instruction at once, in the form of `QuestionVerifier`, and
neither to list what an instruction demands nor to compare pictures: `trained_verifier`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Sequence

from PIL import Image

from ..assistant import Assistant, OnStep
from ..english import is_english
from ..prompts import IMAGE_PLACE, chat_prompt
from .answers import clean
from .looker import Looker
from .opinion import Earlier, Reflection, Scope, Verdict
from .requirements import whole_question
from .task import Task
from .verifier import QuestionVerifier

ANNOUNCEMENT = "<|img|>"


@dataclass(frozen=True)
class Written:
    """What a model wrote: the text without the token that ended it, and which that was (neither: it was cut off)."""

    text: str
    announces_picture: bool = False
    ends_turn: bool = False


WriteOn = Callable[[str, Sequence[Image.Image]], Written]
"""Goes on writing a chat of the model's template, with one picture for each image placeholder in it."""


def sequence(task: Task, picture: Image.Image, earlier: Earlier = ()) -> tuple[str, list[Image.Image]]:
    """The interleaved sequence up to where the reflection on `picture` begins, and its pictures in order."""
    chat = chat_prompt(task.instruction, len(task.references)) + ANNOUNCEMENT
    pictures = list(task.references)
    for before, reflection in earlier:
        said = "\n".join(dict.fromkeys(filter(None, (reflection.problem, reflection.correction))))
        chat += f"{IMAGE_PLACE}{said}{ANNOUNCEMENT}"
        pictures.append(before)
    return chat + IMAGE_PLACE, [*pictures, picture]


def read(written: Written) -> Reflection:
    """The reflection that the model's words and the way they ended amount to.

    Words that are not in English are no opinion, whatever the token that ended them says: the sequence is learnt in
    English, and a correction becomes the prompt of an edit, which would draw anything.

    Its scope is one that `Redraw.AUTO` edits, also where the correction speaks of places: the sequence goes on from its
    picture, so the correction is an instruction on that picture and says nothing of what is right in it.
    """
    text = clean(written.text)
    if not text:
        return Reflection.no_opinion("The model wrote nothing about the picture.", [text])
    if not written.ends_turn and not written.announces_picture:
        return Reflection.no_opinion("The reflection was too long and had no end.", [text])
    *before, correction = [line.strip() for line in text.splitlines() if line.strip()]
    if not is_english(text) or not is_english(correction):
        return Reflection.no_opinion("The reflection was not in English.", [text])
    if written.ends_turn:
        return Reflection.satisfied([text])
    return Reflection.wrong("\n".join(before) or correction, correction, Scope.ATTRIBUTE, answers=[text])


@dataclass(frozen=True)
class TrainedReflector:
    """A `Reflector` that lets a fine-tuned checkpoint go on with the sequence of all rounds so far."""

    write_on: WriteOn

    def __call__(self, task: Task, picture: Image.Image, earlier: Earlier = ()) -> Reflection:
        """Reads what the model writes after the picture. Drawn again is the instruction as it is: corrections are edits."""
        said = read(self.write_on(*sequence(task, picture, earlier)))
        return replace(said, prompt=task.instruction) if said.verdict is Verdict.UNSATISFIED else said


def assistant_writer(assistant: Assistant, *, max_new_tokens: int = 128, on_step: OnStep | None = None) -> WriteOn:
    """`WriteOn` by the checkpoint itself, greedily. `on_step` may raise to cancel.

    What it returns raises what `Assistant.write` does: CheckpointError without a vision tower, PromptError for image
    placeholders in the user's text or a sequence too long.
    """

    tokenizer = assistant.tokenizer

    def write_on(chat: str, pictures: Sequence[Image.Image]) -> Written:
        # Tokenizers disagree about the token's name.
        chat = chat.replace(ANNOUNCEMENT, tokenizer.decode(tokenizer.special.announcement))
        [answer] = assistant.write([chat], [list(pictures)], max_new_tokens=max_new_tokens, on_step=on_step)
        last = answer.tokens[-1]
        return Written(answer.text, last in tokenizer.special.announcement, last == tokenizer.special.im_end)

    return write_on


def trained_verifier(looker: Looker) -> QuestionVerifier:
    """The `Verifier` that such a checkpoint is, asked through `looker`."""
    return QuestionVerifier(looker, lambda task: [whole_question(task)], pairwise=False)
