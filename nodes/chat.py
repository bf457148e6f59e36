"""The chat: a conversation in which the model answers in words or draws, as it decides or the user says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Mapping, Sequence

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image

from ..omnigen2_core.assistant import MAX_IMAGES
from ..omnigen2_core.chat import Drawing, Mode, reply
from ..omnigen2_core.conversation import MAX_TURNS, Conversation, Limits, Role, Turn
from ..omnigen2_core.errors import PromptError, ReferenceImageError
from ..omnigen2_core.images import to_image_tensor
from ..omnigen2_core.profile import ModelProfile
from ..omnigen2_core.prompts import DEFAULT_NEGATIVE_PROMPT
from ..omnigen2_core.understanding import MAX_NEW_TOKENS
from .chat_drawing import Drawn, draw
from .host.assistant import HostAssistant, assistant_of
from .host.chat_pictures import ChatPictures, save_drawn
from .host.guider import require_omnigen2
from .host.live_chat import LiveChat
from .host.model import profile_of
from .host.notes import output_with_notes
from .host.references import collect_pictures, require_vae
from .sampling import setting_inputs
from .understanding import CLIP_TOOLTIP, choice_inputs, images_input, sampling_of

ConversationType = io.Custom("OMNIGEN2_CONVERSATION")
"""A socket whose values are `omnigen2_core.conversation.Conversation`: turns as text, pictures by file name."""

ANSWER = "omnigen2_chat"
"""The key under which web/js/chat.js finds a turn in the node's output."""

SAMPLER = ("seed", "steps", "solver", "text_guidance", "image_guidance", "guidance_start", "guidance_end", "shift")


class OmniGen2Chat(io.ComfyNode):
    """One turn of a conversation.

    The node keeps nothing: the conversation so far comes in as JSON, and the page puts what goes out there again.
    It takes lists, so that a list of images is shown with one message and not with a turn for each, of which the page
    could keep but one.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2Chat",
            display_name="OmniGen2 Chat",
            category="OmniGen2",
            description="A conversation with OmniGen2, which answers each message in words or with a picture, as it "
            "decides or as you say. The conversation is shown on the node and saved with the workflow; its pictures "
            "are files in the output folder.",
            search_aliases=["omnigen2 chat", "conversation", "talk", "interleaved", "multi turn edit", "assistant"],
            is_input_list=True,
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="An OmniGen2 MODEL, from our loaders or from core's."),
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                io.Vae.Input("vae", tooltip="Reads the pictures that are shown and decodes those that are drawn."),
                io.String.Input(
                    "history",
                    multiline=True,
                    default="",
                    socketless=True,
                    extra_dict={"widgetType": "OMNIGEN2_CHAT_HISTORY"},
                    tooltip="The conversation so far as JSON, empty at its beginning. The page shows it as a "
                    "conversation and adds every answer; a program puts the JSON of the last answer here.",
                ),
                io.String.Input(
                    "message",
                    multiline=True,
                    default="",
                    extra_dict={"widgetType": "OMNIGEN2_CHAT_MESSAGE"},
                    tooltip="What you say. Enter sends it, Shift and Enter begin a new line. Empty: nothing is asked, "
                    "and the last answer goes out again.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[mode.value for mode in Mode],
                    default=Mode.AUTO.value,
                    tooltip="auto: the model decides whether it answers in words or draws. text: words only. draw: a "
                    "picture, and no words.",
                ),
                io.Boolean.Input(
                    "show_last_picture",
                    default=False,
                    tooltip="Show the newest picture of the conversation with the message again, after the connected "
                    "images and unless it is one of them: the picture to be changed. Without it a picture is drawn "
                    "from the message alone.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default=DEFAULT_NEGATIVE_PROMPT,
                    advanced=True,
                    tooltip="What to keep away from in a picture. The default is the one that OmniGen2's authors use; "
                    "it may be empty.",
                ),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="Width of a drawn picture, in pixels; cut down to a multiple of 16.",
                ),
                io.Int.Input(
                    "height",
                    default=1024,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="Height of a drawn picture, in pixels; cut down to a multiple of 16.",
                ),
                io.Boolean.Input(
                    "match_reference",
                    default=True,
                    tooltip="With exactly one image shown with the message, draw in that image's size and ignore "
                    "width and height. Best for edits.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Decides the noise that a picture is drawn from and, with sampling, the words.",
                ),
                *setting_inputs(),
                *choice_inputs(sampling=False),
                io.Int.Input(
                    "max_length",
                    default=MAX_NEW_TOKENS,
                    min=1,
                    max=8192,
                    advanced=True,
                    tooltip="Tokens after which an answer in words is cut off; a word is one or two.",
                ),
                io.Int.Input(
                    "keep_turns",
                    default=Limits.turns,
                    min=2,
                    # A message and its answer are there before the oldest go.
                    max=MAX_TURNS - 2,
                    advanced=True,
                    tooltip="How many turns of both sides the conversation keeps. The oldest go first, and a note says "
                    "so.",
                ),
                io.Int.Input(
                    "keep_images",
                    default=Limits.images,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="How many pictures the conversation keeps; those of the newest message always stay. The "
                    "oldest go first, and a note says so. Their files stay.",
                ),
                ConversationType.Input(
                    "conversation",
                    optional=True,
                    tooltip="A conversation of another OmniGen2 Chat to begin with. It counts while this node has none "
                    "of its own.",
                ),
                images_input(
                    "An image to show with the message. Every image of a batch or a list counts as one.",
                    "Images to show with the message, up to five: to talk about, or to draw from. Image 1 of the "
                    "message is the first. They go with every message while they are connected.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "text", display_name="text", tooltip="What the model said; empty when it drew."
                ),
                io.Image.Output(
                    "image",
                    display_name="image",
                    tooltip="What the model drew. When it answered in words, nodes that take this do not run.",
                ),
                ConversationType.Output(
                    "conversation",
                    display_name="conversation",
                    tooltip="The whole conversation with this turn, for another OmniGen2 Chat.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, history, message, images=None, conversation=(None,), **lists
    ) -> io.NodeOutput:
        model, clip, vae, history, conversation = (values[0] for values in (model, clip, vae, history, conversation))
        settings = {name: _first(values) for name, values in lists.items()}
        options = SimpleNamespace(**settings)
        message = _only(message)
        own = Conversation.from_json(history)
        before = own if own.turns else conversation or own
        pictures = ChatPictures()
        if not message.strip():
            return _last_answer(before, pictures)
        assistant = assistant_of(clip)
        require_omnigen2(model)
        require_vae(vae)
        profile = profile_of(model)
        most = min(MAX_IMAGES, profile.max_references)
        shown = [pictures.show(picture) for picture in collect_pictures(_each_of(images), most)]
        if options.show_last_picture:
            shown = _with_last(shown, before, most)
        live = LiveChat(cls.hidden.unique_id, message, options.max_length)
        drawn: list[Drawn] = []

        def on_draw(drawing: Drawing) -> list[str]:
            live.drawing()
            sampler = {name: settings[name] for name in SAMPLER if name in settings}
            size = {name: settings[name] for name in ("width", "height", "match_reference")}
            edited = options.match_reference and len(shown) == 1 and shown[0] in _drawn_in(before)
            limits = _for_whole(drawing.references, profile) if edited else profile
            drawn.append(draw(model, vae, drawing, message, limits, **size, sampler=sampler))
            return save_drawn(drawn[0].image, cls)

        said = reply(
            assistant,
            before,
            message,
            shown,
            load=pictures.open,
            draw=on_draw,
            mode=Mode(options.mode),
            negative_prompt=options.negative_prompt,
            limits=_limits(assistant, options),
            sampling=sampling_of(options),
            seed=options.seed,
            max_new_tokens=options.max_length,
            on_text=lambda piece: live.on_text(0, piece),
            on_step=live.on_step,
        )
        pictures.keep()
        answer = {"before": history, "message": message, "conversation": said.conversation.to_json()}
        return output_with_notes(
            said.turn.text,
            drawn[0].image if drawn else ExecutionBlocker(None),
            said.conversation,
            notes=[
                *_notes_on_beginning(own, conversation, said.dropped.turns),
                *said.notes,
                *(drawn[0].notes if drawn else ()),
            ],
            text=[said.turn.text],
            **{ANSWER: [answer]},
        )


def _first(values: Any) -> Any:
    """The first value of an input's list; an input with choices is a mapping of such lists."""
    return {name: _first(own) for name, own in values.items()} if isinstance(values, Mapping) else values[0]


def _only(messages: Sequence[str]) -> str:
    """Raises PromptError unless the list holds one message."""
    if len(messages) != 1:
        raise PromptError(
            f"The list at message has {len(messages)} texts, but a turn has one message; connect a single text, or use "
            "OmniGen2 Ask for several questions."
        )
    return messages[0]


def _each_of(lists: Mapping[str, Sequence[Any]] | None) -> dict[str, Any]:
    """Slots of images, as if each entry of the lists, [B, H, W, 3], were connected by itself."""
    entries = [entry for name in sorted(lists or {}) for entry in lists[name]]
    return {f"image_{number}": entry for number, entry in enumerate(entries, 1)}


def _with_last(shown: list[str], before: Conversation, most: int) -> list[str]:
    """The names of connected pictures and that of the conversation's newest, unless it is one of them.

    Raises ReferenceImageError for more than `most` of them.
    """
    last = [name for name in before.images[-1:] if name not in shown]
    if len(shown) + len(last) > most:
        raise ReferenceImageError(
            f"{len(shown)} images are connected and show_last_picture adds another, but the model reads at most {most}; "
            "remove one of them or turn show_last_picture off."
        )
    return shown + last


def _limits(assistant: HostAssistant, options: SimpleNamespace) -> Limits:
    """Earlier turns leave room for the answer in what the model reads.

    The newest message may fill all of it: a picture is drawn without an answer in words, and where one does not fit,
    writing it is refused with a better reason than too long a message.
    """
    reads = assistant.model.config.text["max_position_embeddings"]
    room = reads - options.max_length
    tokens = min(Limits.tokens, room if room > 0 else reads)
    return Limits(options.keep_turns, options.keep_images, tokens, reads)


def _last_answer(conversation: Conversation, pictures: ChatPictures) -> io.NodeOutput:
    """What goes out when nothing is asked. Before a conversation has begun nothing does, and all else on the canvas runs."""
    if not conversation.turns:
        nothing: Any = ExecutionBlocker(None)
        note = "In this run nothing was asked here and there is no conversation yet; send a message to begin one."
        return output_with_notes(nothing, nothing, conversation, notes=[note])
    turn = conversation.turns[-1]
    notes = ["In this run nothing was asked here, so the last answer went out again."]
    image: Any = ExecutionBlocker(None)
    if turn.images:
        try:
            image = to_image_tensor(pictures.open(turn.images[0]))
        except OSError as error:
            notes.append(f"The picture {turn.images[0]!r} cannot be opened: {error}. No image went out.")
    return output_with_notes(turn.text, image, conversation, notes=notes, text=[turn.text])


def _drawn_in(conversation: Conversation) -> set[str]:
    """The names of the pictures that the model drew."""
    return {name for turn in conversation.turns if turn.role is Role.ASSISTANT for name in turn.images}


def _for_whole(pictures: Sequence[Image.Image], profile: ModelProfile) -> ModelProfile:
    """The profile with room for the longer side of pictures that were drawn: its own limit is for what the user shows."""
    return replace(profile, max_side=max(profile.max_side, *(max(picture.size) for picture in pictures)))


def _notes_on_beginning(own: Conversation, connected: Conversation | None, dropped: int) -> list[str]:
    """A note where a connected conversation is not what this one began with.

    dropped: turns that the limits took from this one now. They may have taken all that was connected before, so that
    nothing can be told from what is left.
    """
    if connected is None or not connected.turns or not own.turns or dropped or _begins_with(own, connected):
        return []
    return [
        "The connected conversation did not count, because this node continues its own; begin a new one to continue "
        "from there."
    ]


def _begins_with(own: Conversation, connected: Conversation) -> bool:
    """Whether a conversation goes on from another, of which it may have lost the oldest turns and any pictures."""
    for lost in range(0, len(connected.turns), 2):
        rest = connected.turns[lost:]
        if len(rest) <= len(own.turns) and all(map(_is_left_of, own.turns, rest)):
            return True
    return False


def _is_left_of(kept: Turn, whole: Turn) -> bool:
    """Whether a turn is another one, perhaps without some of its pictures."""
    if (kept.role, kept.text) != (whole.role, whole.text):
        return False
    images = len(kept.images) + kept.images_dropped == len(whole.images) + whole.images_dropped
    return images and set(kept.images) <= set(whole.images)
