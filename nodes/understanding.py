"""Nodes in which the encoder looks and writes: questions about pictures, and prompts rewritten."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, Iterator, Mapping, Sequence

import torch
from comfy_api.latest import io
from PIL import Image

from ..omnigen2_core import enhance, understanding
from ..omnigen2_core.assistant import MAX_IMAGES, Answer
from ..omnigen2_core.errors import PromptError
from ..omnigen2_core.generation import Sampling
from ..omnigen2_core.presets import PRESETS, Preset
from .host.assistant import assistant_of
from .host.live_text import LiveText
from .host.notes import output_with_notes
from .host.references import all_pictures, pictures_in

CATEGORY = "OmniGen2/understanding"
OWN_QUESTION = "own_question"
REWRITTEN = "omnigen2_rewritten"
"""What a rewritten prompt is reported as, for the button on the node."""
CLIP_TOOLTIP = (
    "OmniGen2's encoder (Qwen2.5-VL 3B) with its vision part, from OmniGen2 Load Encoder or OmniGen2 Load Folder. "
    "ComfyUI's Load CLIP builds one that cannot look or write."
)


class OmniGen2Ask(io.ComfyNode):
    """Questions about up to five images each, answered in words.

    It takes lists, so that a list of questions is asked in batches and not one after the other.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2Ask",
            display_name="OmniGen2 Ask",
            category=CATEGORY,
            description="Asks OmniGen2's encoder, a vision language model, about images: a question of your own, or a "
            "ready one for captions, tags, comparisons, objects and text. The answer appears on the node while it is "
            "written.",
            search_aliases=["omnigen2 caption", "image to text", "describe image", "vqa", "ocr", "qwen vl", "tagger"],
            is_input_list=True,
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                io.Combo.Input(
                    "preset",
                    options=[OWN_QUESTION, *PRESETS],
                    default=OWN_QUESTION,
                    tooltip="own_question asks what you write below. The others are ready questions: a caption in one "
                    "sentence or in a paragraph, tags, the differences between two images, objects with their places, "
                    "the text in an image.",
                ),
                io.String.Input(
                    "question",
                    multiline=True,
                    tooltip="What to ask, in any language that the model knows; with several images call them image 1, "
                    "image 2. Not used with a ready question. A list of texts is asked as that many questions.",
                ),
                io.Boolean.Input(
                    "each_image",
                    default=False,
                    tooltip="Off: one question about all images together. On: the question is asked about every image "
                    "alone, of however many there are, and the answers are a list.",
                ),
                *_sampling_inputs(sampling=False),
                io.Int.Input(
                    "max_length",
                    default=0,
                    min=0,
                    max=8192,
                    advanced=True,
                    tooltip="Tokens after which an answer is cut off; a word is one or two. 0 takes what suits the "
                    "question (256 for your own).",
                ),
                io.Int.Input(
                    "at_once",
                    default=4,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="How many questions are answered together where there are several. More are faster and "
                    "need more memory; the answers are the same.",
                ),
                images_input(
                    "An image to ask about. Every image of a batch counts as one.",
                    "Images to ask about, up to five for one question. Image 1 of the question is the first.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "answer",
                    display_name="answer",
                    is_output_list=True,
                    tooltip="What the model wrote; with several questions a list, in their order.",
                )
            ],
        )

    @classmethod
    def execute(cls, question, images=None, **lists) -> io.NodeOutput:
        settings = SimpleNamespace(**{name: values[0] for name, values in lists.items()})
        preset = PRESETS.get(settings.preset)
        # Questions about one tensor share its pictures. A tensor is hashed by its identity.
        read = cache(pictures_in)
        asked = [
            one
            for text, slots in _runs(question, images or {})
            for one in _questions(text, all_pictures(slots, read), preset, settings.each_image)
        ]
        max_length = settings.max_length or (preset.max_new_tokens if preset else understanding.MAX_NEW_TOKENS)
        live = LiveText(cls.hidden.unique_id, len(asked), max_length, settings.at_once)
        live.begin()
        answers = understanding.ask(
            assistant_of(settings.clip),
            [text for text, _ in asked],
            [pictures for _, pictures in asked],
            sampling=sampling_of(settings),
            seed=settings.seed,
            max_new_tokens=max_length,
            batch=settings.at_once,
            on_text=live.on_text,
            on_step=live.on_step,
        )
        texts = [answer.text for answer in answers]
        shown = live.finish(*texts)
        return output_with_notes(texts, notes=_notes(answers, max_length), text=texts, **shown)


class OmniGen2EnhancePrompt(io.ComfyNode):
    """A short prompt becomes a detailed one, which the user may then change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2EnhancePrompt",
            display_name="OmniGen2 Enhance Prompt",
            category=CATEGORY,
            description="Rewrites a short prompt in any language as a detailed English one, with regard to the "
            "reference images, never longer than the encoder reads. The text appears on the node and can be edited.",
            search_aliases=["omnigen2 rewrite prompt", "prompt upsampling", "prompt expansion", "magic prompt"],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="What to draw or to change, in a few words of any language. Words in quotation marks stay "
                    "as they are.",
                ),
                io.String.Input(
                    "edited",
                    multiline=True,
                    default="",
                    tooltip="Empty: the model rewrites the prompt. Otherwise this text goes out unchanged and the "
                    "model is not asked. The button on the node puts the last rewritten prompt here, to be edited.",
                ),
                *_sampling_inputs(sampling=True),
                io.Int.Input(
                    "max_length",
                    default=enhance.MAX_NEW_TOKENS,
                    min=1,
                    max=8192,
                    advanced=True,
                    tooltip="Tokens after which the model is stopped; the prompt then ends with its last whole "
                    "sentence.",
                ),
                images_input(
                    "A reference image. Every image of a batch counts as one reference.",
                    "The reference images that OmniGen2 Encode gets, in the same order; the model looks at them and "
                    "calls them image 1, image 2.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt",
                    display_name="prompt",
                    tooltip="The rewritten prompt, or what is in edited; for the prompt of OmniGen2 Encode.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, clip, prompt, edited="", max_length=enhance.MAX_NEW_TOKENS, images=None, **sampling
    ) -> io.NodeOutput:
        live = LiveText(cls.hidden.unique_id, 1, max_length)
        if edited.strip():
            shown = live.finish(edited)
            note = "The text in edited was used and the model not asked; empty the field to have the prompt rewritten."
            return output_with_notes(edited, notes=[note], text=[edited], **shown)
        live.begin()
        assistant = assistant_of(clip)
        settings = SimpleNamespace(**sampling)
        enhanced = enhance.enhance_prompt(
            assistant,
            prompt,
            all_pictures(images),
            max_text_tokens=assistant.encoder.profile.max_text_tokens,
            sampling=sampling_of(settings),
            seed=settings.seed,
            max_new_tokens=max_length,
            on_text=lambda piece: live.on_text(0, piece),
            on_step=live.on_step,
        )
        shown = live.finish(enhanced.text)
        # Under a name of its own, since what is in `edited` is no rewritten prompt.
        rewritten = {REWRITTEN: [enhanced.text]}
        return output_with_notes(enhanced.text, notes=enhanced.notes, text=[enhanced.text], **rewritten, **shown)


def choice_inputs(*, sampling: bool) -> list[io.Input]:
    """How words are chosen, all but the seed; `sampling_of` reads their values. sampling: the switch's default."""
    return [
        io.Boolean.Input(
            "sampling",
            default=sampling,
            tooltip="Off: always the likeliest words, so that the same question gets the same answer. On: words are "
            "drawn by chance, and the seed decides.",
        ),
        io.Float.Input(
            "temperature",
            default=0.7,
            min=0.01,
            max=2.0,
            step=0.01,
            advanced=True,
            tooltip="With sampling: less keeps to likely words, more chooses more freely.",
        ),
        io.Float.Input(
            "top_p",
            default=0.9,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="With sampling: only the likeliest words that together reach this probability are drawn from. 1 "
            "takes all.",
        ),
        io.Int.Input(
            "top_k",
            default=50,
            min=0,
            max=1000,
            advanced=True,
            tooltip="With sampling: only so many of the likeliest words are drawn from. 0 takes all.",
        ),
        io.Float.Input(
            "repetition_penalty",
            default=1.0,
            min=0.1,
            max=5.0,
            step=0.01,
            advanced=True,
            tooltip="Above 1, words that are there already become less likely, with sampling and without. 1 is off; "
            "Qwen advises 1.05.",
        ),
    ]


def _sampling_inputs(*, sampling: bool) -> list[io.Input]:
    return [
        *choice_inputs(sampling=sampling),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Decides what chance gives when sampling is on: the same seed, the same words.",
        ),
    ]


def images_input(each: str, together: str) -> io.Autogrow.Input:
    """Up to five growing slots for images, with the tooltips of one slot and of all together."""
    slots = io.Autogrow.TemplateNames(
        io.Image.Input("image", optional=True, tooltip=each),
        names=[f"image_{i}" for i in range(1, MAX_IMAGES + 1)],
        min=0,
    )
    return io.Autogrow.Input("images", template=slots, optional=True, tooltip=together)


def sampling_of(settings: SimpleNamespace) -> Sampling:
    """The values of `choice_inputs`, as attributes, as settings of text generation."""
    if not settings.sampling:
        return Sampling(repetition_penalty=settings.repetition_penalty)
    return Sampling(settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty)


def _runs(
    questions: Sequence[str], images: Mapping[str, Sequence[torch.Tensor]]
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """A question and its slots for every place of the longest list; shorter lists go on with their last value."""
    slots = {name: values for name, values in images.items() if values is not None}
    empty = [name for name, values in {"question": questions, **slots}.items() if not values]
    if empty:
        raise PromptError(f"The list at {empty[0]} is empty; give at least one value.")
    for i in range(max(len(values) for values in (questions, *slots.values()))):
        yield _at(questions, i), {name: _at(values, i) for name, values in slots.items()}


def _at(values: Sequence[Any], i: int) -> Any:
    return values[min(i, len(values) - 1)]


def _questions(
    text: str, pictures: list[Image.Image], preset: Preset | None, each_image: bool
) -> list[tuple[str, list[Image.Image]]]:
    """What is asked about these pictures: one question, or one for each, as a ready one about one picture always is."""
    alone = bool(pictures) and (each_image if preset is None else preset.images == 1)
    groups = [[picture] for picture in pictures] if alone else [pictures]
    if preset is not None:
        preset.check(len(groups[0]))
        text = preset.question
    elif not text.strip():
        raise PromptError("The question is empty; write one, or choose a ready one under preset.")
    return [(text, group) for group in groups]


def _notes(answers: Sequence[Answer], max_length: int) -> list[str]:
    cut = [number for number, answer in enumerate(answers, 1) if not answer.complete]
    silent = [number for number, answer in enumerate(answers, 1) if answer.complete and not answer.text.strip()]
    notes = []
    if cut:
        notes.append(f"{_named(cut, answers)} cut off after {max_length} tokens; raise max_length for more.")
    if silent:
        notes.append(f"{_named(silent, answers)} ended by the model without a word; ask in other words.")
    return notes


def _named(numbers: Sequence[int], answers: Sequence[Answer]) -> str:
    """The beginning of a sentence about the answers of these numbers, counted from 1."""
    if len(answers) == 1:
        return "The answer was"
    listed = ", ".join(map(str, numbers))
    return f"Answer {listed} was" if len(numbers) == 1 else f"Answers {listed} were"
