"""Nodes that look at what they draw: the reflection loop, and best of N."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Mapping

import torch
from comfy_api.latest import io

from ..omnigen2_core.generation import SEEDS
from ..omnigen2_core.images import to_image_tensor
from ..omnigen2_core.reflection import MAX_ROUNDS, Record, Redraw, Round, Stop, Task, best_of, reflect, to_text
from ..omnigen2_core.reflection.best_of import MAX_PICTURES
from ..omnigen2_core.transformer import MAX_REFERENCES
from .drawing import HostDrawer
from .encode import OmniGen2Encode
from .host.judging import JUDGES, WAYS, onlooker_of, reflector_of, verifier_of
from .host.notes import output_with_notes
from .host.prompt import profile_of_clip
from .host.references import collect_pictures, require_vae
from .host.rounds import ROUNDS, Rounds, picked_record
from .sampling import setting_inputs, shift_of

CATEGORY = "OmniGen2/reflection"
ENCODING = ("negative_prompt", "width", "height", "match_reference")
ENCODING_ADVANCED = ("max_pixels", "max_side", "encoder_sees_images")
NO_SCORE = -1.0
AS_FIRST = 0.0
"""A guidance scale for edits that stands for the one of the first drawing."""


class OmniGen2ReflectionLoop(io.ComfyNode):
    """Draws, looks at the picture, and corrects it for as long as that helps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2ReflectionLoop",
            display_name="OmniGen2 Reflection Loop",
            category=CATEGORY,
            description="Draws a picture, has OmniGen2's encoder look at it and say what is wrong, and corrects it, "
            "until it is right, a correction does not help, or the rounds are used. The best picture goes out, and "
            "the node shows all of them.",
            search_aliases=["self correction", "omnigen2 reflect", "refine", "critic", "verify"],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *_drawing_inputs(),
                io.Int.Input(
                    "rounds",
                    default=2,
                    min=0,
                    max=MAX_ROUNDS,
                    tooltip="Corrections at most; each is one picture, or with redraw on auto up to three. With 0 the "
                    "picture is drawn and judged, and not corrected.",
                ),
                io.Combo.Input(
                    "redraw",
                    options=[way.value for way in Redraw],
                    default=Redraw.AUTO.value,
                    tooltip="How a correction is carried out. edit: the last picture is edited, with the correction as "
                    "the prompt. draw again: a new picture from the prompt and the correction. auto: colours and other "
                    "details are edited, places and numbers drawn again; where that does not make the picture right, "
                    "the other way too, and where neither makes it better, drawn again once more. Weights that were "
                    "fine-tuned to reflect learnt corrections as edits: with auto they edit first whatever it is, and "
                    "what they draw again follows the prompt alone.",
                ),
                io.Combo.Input(
                    "reflect_by",
                    options=list(WAYS),
                    default="auto",
                    tooltip="prompted: a fixed question, for the published weights. trained: for weights that were "
                    "fine-tuned to reflect. auto: what the loaded weights are made for.",
                ),
                _edit_guidance("text", 20.0),
                _edit_guidance("image", 10.0),
                _judge_input(),
                io.Int.Input(
                    "pick",
                    default=-1,
                    min=-1,
                    max=9999,
                    tooltip="The earlier round to go on from, the first being 0. The button below the rounds on the node sets it. -1 "
                    "draws anew.",
                ),
                io.String.Input(
                    "earlier_rounds",
                    multiline=True,
                    default="",
                    advanced=True,
                    tooltip="The rounds that pick counts in: the JSON of the run that they are from. The node fills it "
                    "when a round is picked. Not used while pick is -1.",
                ),
                *_encode_inputs(*ENCODING_ADVANCED, "images"),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The best picture by the judge, or the picked "
                                "one where nothing was judged better."),
                io.Image.Output(
                    "rounds",
                    display_name="rounds",
                    is_output_list=True,
                    tooltip="The pictures of all rounds as a list, in their order.",
                ),
                *_transcript_outputs("earlier_rounds"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        clip,
        prompt,
        seed,
        rounds,
        redraw,
        reflect_by,
        judge,
        edit_text_guidance=AS_FIRST,
        edit_image_guidance=AS_FIRST,
        pick=-1,
        earlier_rounds="",
        images=None,
        **drawing,
    ) -> io.NodeOutput:
        editing = {"text_guidance": edit_text_guidance, "image_guidance": edit_image_guidance}
        editing = {name: scale for name, scale in editing.items() if scale != AS_FIRST}
        drawer, task, settings = _prepare(clip, prompt, images, drawing, editing)
        settings |= {f"edit_{name}": scale for name, scale in editing.items()}
        if pick < 0:
            record, names, notes = Record(task), [], []
        else:
            record, names, notes = picked_record(task, earlier_rounds, pick, judge)
        given = len(record.rounds)
        onlooker = onlooker_of(clip)
        reflector, verifier = reflector_of(onlooker, reflect_by), verifier_of(onlooker, judge)
        with Rounds(cls, record, names) as shown:
            reflect(
                record,
                drawer,
                reflector,
                verifier,
                rounds=rounds,
                redraw=Redraw(redraw),
                editor=drawer.edit,
                seed=seed,
                settings={**settings, "redraw": redraw, "reflect_by": reflect_by, "judge": judge},
                on_stage=shown.on_stage,
                on_round=shown.on_round,
            )
        best = record.best
        if pick >= 0 and len(record.rounds) == given and record.stop in (Stop.SATISFIED, Stop.OVERRULED):
            notes = [*notes, f"Round {pick} is held right, so nothing was changed. Say in the prompt what it lacks, or set pick to -1."]
        if record.stop is Stop.NO_OPINION and best.reflection is not None:
            notes = [*notes, f"There is no opinion on the picture. {best.reflection.note}"]
        return output_with_notes(
            to_image_tensor(best.picture),
            _images(record.rounds),
            to_text(record),
            shown.to_json(),
            notes=filter(None, [*notes, best.score.note, *drawer.notes]),
            **{ROUNDS: [shown.values()]},
        )


class OmniGen2BestOfN(io.ComfyNode):
    """Draws several pictures and ranks them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2BestOfN",
            display_name="OmniGen2 Best of N",
            category=CATEGORY,
            description="Draws the prompt with several seeds, has OmniGen2's encoder score each picture against the "
            "prompt, and returns them in order, the best first.",
            search_aliases=["rank", "score", "select best", "verifier", "rejection sampling"],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *_drawing_inputs(),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=MAX_PICTURES,
                    tooltip="How many pictures to draw, with the seed and those that follow it.",
                ),
                _judge_input(),
                *_encode_inputs(*ENCODING_ADVANCED, "images"),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The best picture by the judge."),
                io.Image.Output(
                    "ranked",
                    display_name="ranked",
                    is_output_list=True,
                    tooltip="All pictures as a list, the best first.",
                ),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The score of each of them: the expected share of the prompt's demands that are met, 0 to "
                    "1; -1 where the judge gave no usable answer.",
                ),
                io.Int.Output(
                    "seeds", display_name="seeds", is_output_list=True, tooltip="The seed of each of them."
                ),
                *_transcript_outputs("earlier_rounds of OmniGen2 Reflection Loop, where picture 1 is pick 0"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip, prompt, seed, count, judge, images=None, **drawing) -> io.NodeOutput:
        drawer, task, settings = _prepare(clip, prompt, images, drawing)
        verifier = verifier_of(onlooker_of(clip), judge)
        record = Record(task)
        with Rounds(cls, record) as shown:
            best_of(
                record,
                drawer,
                verifier,
                [(seed + i) % SEEDS for i in range(count)],
                settings={**settings, "judge": judge},
                on_stage=shown.on_stage,
                on_round=shown.on_round,
            )
        ranked = record.ranked()
        values = [entry.score.value for entry in ranked]
        return output_with_notes(
            to_image_tensor(record.best.picture),
            _images(ranked),
            [NO_SCORE if value is None else value for value in values],
            [entry.seed for entry in ranked],
            to_text(record, _picture_name),
            shown.to_json(),
            notes=[*_notes_on_scores(record), *drawer.notes],
            **{ROUNDS: [shown.values()]},
        )


def _drawing_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="An OmniGen2 MODEL, from our loaders or from core's."),
        io.Clip.Input(
            "clip",
            tooltip="OmniGen2's encoder (Qwen2.5-VL 3B). To look at pictures it needs its vision part, as OmniGen2 "
            "Load Encoder and OmniGen2 Load Folder give it; without, there is no opinion on any picture.",
        ),
        io.Vae.Input("vae", tooltip="The VAE that comes with OmniGen2 or FLUX.1, from any VAE loader."),
        *_encode_inputs("prompt", *ENCODING),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=SEEDS - 1,
            control_after_generate=True,
            tooltip="Seed of the first picture, as in OmniGen2 Sampler. Each following picture takes the next seed.",
        ),
        *setting_inputs(),
    ]


def _encode_inputs(*names: str) -> list[io.Input]:
    """Inputs of OmniGen2 Encode, which draws in these nodes too."""
    known = {given.id: given for given in OmniGen2Encode.define_schema().inputs}
    return [known[name] for name in names]


def _judge_input() -> io.Combo.Input:
    return io.Combo.Input(
        "judge",
        options=list(JUDGES),
        default="model",
        advanced=True,
        tooltip="Who scores the pictures. model: the connected encoder. own_endpoint: an OpenAI-compatible server of "
        "yours, to which the prompt and the pictures are sent; its address, model and key are read from the "
        "environment variables OMNIGEN2_JUDGE_URL, OMNIGEN2_JUDGE_MODEL and OMNIGEN2_JUDGE_KEY alone.",
    )


def _edit_guidance(kind: str, most: float) -> io.Float.Input:
    return io.Float.Input(
        f"edit_{kind}_guidance",
        default=AS_FIRST,
        min=0.0,
        max=most,
        step=0.1,
        advanced=True,
        tooltip=f"The {kind} guidance where a picture is edited to correct it, if it is to be another than that of the "
        "first drawing. 0: the same. Above 0 up to 1: none.",
    )


def _transcript_outputs(uses: str) -> list[io.Output]:
    """Outputs of what was made and said; uses: what the JSON is also for."""
    return [
        io.String.Output(
            "transcript", display_name="transcript", tooltip="What was drawn and said of each picture, to read."
        ),
        io.String.Output(
            "json",
            display_name="json",
            tooltip="The same as JSON, with score, seed, settings and time of each picture and the files of the "
            f"pictures; also for {uses}.",
        ),
    ]


def _prepare(
    clip: Any,
    prompt: str,
    images: Mapping[str, torch.Tensor | None] | None,
    drawing: dict[str, Any],
    editing: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[HostDrawer, Task, dict[str, Any]]:
    """Who draws, what is to be drawn, and the settings as a transcript keeps them.

    drawing: `model`, `vae`, the inputs of OmniGen2 Encode and of `sample_latent`; editing: those of the latter that
    are others when a picture is edited. Raises what those would refuse.
    """
    profile = profile_of_clip(clip)
    model, vae = drawing.pop("model"), drawing.pop("vae")
    require_vae(vae)
    references = collect_pictures(images, min(MAX_REFERENCES, profile.max_references))
    encoding = {name: drawing.pop(name) for name in (*ENCODING, *ENCODING_ADVANCED) if name in drawing}
    drawer = HostDrawer(model, clip, vae, encoding, drawing, editing)
    settings = {**encoding, **drawing, "shift": shift_of(drawing.get("shift"))}
    return drawer, Task(prompt, tuple(references)), settings


def _picture_name(index: int) -> str:
    """As web/js/reflection.js names the pictures of OmniGen2 Best of N."""
    return f"picture {index + 1}"


def _notes_on_scores(record: Record) -> list[str]:
    """What could not be judged, and of which pictures where it is not the same of all."""
    notes = [entry.score.note for entry in record.rounds]
    if len(set(notes)) == 1:
        return list(filter(None, notes[:1]))
    return [f"{_picture_name(index).capitalize()}: {note}" for index, note in enumerate(notes) if note]


def _images(entries: list[Round]) -> list[torch.Tensor]:
    return [to_image_tensor(entry.picture) for entry in entries]
