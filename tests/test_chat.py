"""One turn of the chat: words or a picture, as the model decides or the user says, and earlier turns before it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from talking import SPECIAL_TOKENS, golden_assistant, says

from omnigen2_core.chat import Mode, conversation_prompt, reply
from omnigen2_core.conversation import Conversation, Limits, Role, Turn
from omnigen2_core.errors import ConversationError, PromptError
from omnigen2_core.mllm import encode_text, encode_with_images
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.prompts import DEFAULT_NEGATIVE_PROMPT, chat_prompt
from omnigen2_core.vision import preprocess, token_counts

SEE = "<|vision_start|><|image_pad|><|vision_end|>"


class Files:
    """Pictures by name, as a host keeps them; notes what was opened."""

    def __init__(self, *names):
        self.names = set(names)
        self.opened = []

    def __call__(self, name):
        self.opened.append(name)
        if name not in self.names:
            raise FileNotFoundError(f"no {name}")
        seed = sum(name.encode())
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


class Draw:
    """Keeps what it is given, and a picture under the next name."""

    def __init__(self, files):
        self.files, self.drawings = files, []

    def __call__(self, drawing):
        self.drawings.append(drawing)
        name = f"drawn{len(self.drawings)}.png"
        self.files.names.add(name)
        return [name]


@pytest.fixture(scope="module")
def assistant(golden):
    """Shared, since every test takes back what it did to it."""
    return golden_assistant(golden)


@pytest.fixture
def files():
    return Files("a.png", "b.png")


@pytest.fixture
def draw(files):
    return Draw(files)


@pytest.fixture
def turn(assistant, files, draw):
    """`reply` with everything that is the same in all tests."""

    def turn(conversation, message, images=(), **options):
        return reply(assistant, conversation, message, images, load=files, draw=draw, **options)

    return turn


def exact(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# One turn, as in the reference


def test_the_first_turns_prompt_is_the_references(assistant, golden):
    for row in json.loads((golden / "prompts.json").read_text(encoding="utf-8"))["chat_rows"]:
        message = Turn(Role.USER, row["prompt"], tuple(f"{i}.png" for i in range(row["n_images"])))
        assert conversation_prompt([message], assistant.tokenizer) == row["text"]


def test_an_answer_in_words_becomes_the_assistants_turn(monkeypatch, assistant, turn, draw):
    prompts = says(monkeypatch, assistant, "A fox.")
    heard = []
    said = turn(Conversation(), "What is it?", ["a.png"], on_text=heard.append)
    assert said.conversation.turns == (Turn(Role.USER, "What is it?", ("a.png",)), Turn(Role.ASSISTANT, "A fox."))
    assert said.turn.text == "".join(heard) == said.answer.text
    assert prompts == [chat_prompt("What is it?", 1)] and not draw.drawings and not said.notes


@torch.no_grad()
def test_an_answer_that_begins_with_the_picture_token_is_drawn(monkeypatch, assistant, turn, draw, files):
    says(monkeypatch, assistant, "<|img|>")
    heard = []
    said = turn(Conversation(), "Draw a fox.", ["a.png", "b.png"], on_text=heard.append)
    assert said.turn == Turn(Role.ASSISTANT, "", ("drawn1.png",)) and not heard
    assert said.answer.tokens == (assistant.tokenizer.special.img,)
    [drawing] = draw.drawings
    assert drawing.prompt == chat_prompt("Draw a fox.", 2)
    pictures = [files("a.png"), files("b.png")]
    assert [np.asarray(p).tolist() for p in drawing.references] == [np.asarray(p).tolist() for p in pictures]
    pixels, grid = preprocess(pictures)
    batch = assistant.tokenizer.tokenize([drawing.prompt], image_tokens=[token_counts(grid, 2)])
    hidden, mask = encode_with_images(assistant.model, batch.ids, batch.mask, pixels, grid)
    assert exact(drawing.text.hidden, hidden) <= 1e-5 and torch.equal(drawing.text.mask, mask)
    batch = assistant.tokenizer.tokenize([chat_prompt(DEFAULT_NEGATIVE_PROMPT)])
    assert exact(drawing.negative.hidden, encode_text(assistant.model, batch.ids, batch.mask)) <= 1e-5
    assert torch.equal(drawing.negative.mask, batch.mask)


@pytest.mark.parametrize("written", ["Here: <|img|>", "<|im_end|><|img|>", "<|endoftext|>"])
def test_a_picture_token_anywhere_else_draws_nothing(monkeypatch, assistant, turn, draw, written):
    says(monkeypatch, assistant, written)
    said = turn(Conversation(), "Draw a fox.")
    assert not draw.drawings and said.turn.images == ()
    assert said.turn.text == ("Here: " if "Here" in written else "")


def test_the_letters_of_the_picture_tokens_name_draw_nothing(monkeypatch, assistant, turn, draw):
    says(monkeypatch, assistant, "<|img|>", spelled=True)
    said = turn(Conversation(), "Draw a fox.")
    assert not draw.drawings and said.turn.text == "<|img|>"


def test_the_picture_token_may_have_another_name(monkeypatch, golden, files, draw):
    """ComfyUI's own tokenizer files call its id <tool_response>."""
    assistant = golden_assistant(golden, SPECIAL_TOKENS | {"img": "<tool_response>"})
    prompts = says(monkeypatch, assistant, "<tool_response>", "Yes.")
    first = reply(assistant, Conversation(), "Draw a fox.", load=files, draw=draw)
    second = reply(assistant, first.conversation, "Is it red?", load=files, draw=draw)
    assert len(draw.drawings) == 1 and second.turn.text == "Yes."
    ids = assistant.tokenizer.encode(prompts[-1])
    assert ids.count(assistant.tokenizer.special.img) == 1


# What the user can force


def test_words_can_be_forced(monkeypatch, assistant, turn, draw):
    img, logits = assistant.tokenizer.special.img, assistant.model.logits
    eager = torch.nn.functional.one_hot(torch.tensor(img), 1024) * 1000.0
    monkeypatch.setattr(assistant.model, "logits", lambda hidden, head=None: logits(hidden, head) + eager)
    said = turn(Conversation(), "Draw a fox.", mode=Mode.TEXT, max_new_tokens=4)
    assert not draw.drawings and img not in said.answer.tokens and len(said.answer.tokens) == 4
    turn(Conversation(), "Draw a fox.", max_new_tokens=4)
    assert len(draw.drawings) == 1


def test_a_drawing_can_be_forced_and_then_nothing_is_written(monkeypatch, assistant, turn, draw):
    says(monkeypatch, assistant)
    said = turn(Conversation(), "What is it?", ["a.png"], mode=Mode.DRAW, negative_prompt=None)
    assert said.answer is None and said.turn.images == ("drawn1.png",)
    assert draw.drawings[0].prompt == chat_prompt("What is it?", 1)
    length = len(assistant.tokenizer.encode(chat_prompt("")))
    assert draw.drawings[0].negative.mask.tolist() == [[1] * length]


# More turns, which are ours


def test_earlier_turns_stand_before_the_message_in_the_same_template(monkeypatch, assistant, turn, draw):
    prompts = says(monkeypatch, assistant, "<|img|>", "It is <red>.", "Yes.")
    talk = turn(Conversation(), "Draw a fox.", ["a.png"]).conversation
    talk = turn(talk, "Which colour?").conversation
    turn(talk, "Sure?", ["b.png"])
    first = chat_prompt("Draw a fox.", 1)
    system = first[: first.index("<|im_start|>user")]
    assert prompts[-1] == (
        f"{first}<|img|>{SEE}<|im_end|>\n"
        f"{chat_prompt('Which colour?').removeprefix(system)}It is <red>.<|im_end|>\n"
        f"{chat_prompt('Sure?', 1).removeprefix(system)}"
    )


def test_what_the_model_spelled_out_is_no_token_in_the_next_prompt(assistant):
    said = [Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "<|im_end|>x<|image_pad|>"), Turn(Role.USER, "and?")]
    prompt = conversation_prompt(said, assistant.tokenizer)
    assert "assistant\nx<|im_end|>\n" in prompt and "<|image_pad|>" not in prompt


def test_a_turn_that_drew_still_says_so_when_its_picture_was_dropped(assistant):
    said = [Turn(Role.USER, "Draw."), Turn(Role.ASSISTANT, "", images_dropped=1), Turn(Role.USER, "and?")]
    assert "assistant\n<|img|><|im_end|>\n" in conversation_prompt(said, assistant.tokenizer)


def test_a_picture_is_drawn_from_the_newest_message_unless_all_turns_are_asked_for(monkeypatch, assistant, turn, draw):
    says(monkeypatch, assistant, "A fox.", "<|img|>", "<|img|>")
    talk = turn(Conversation(), "What is it?", ["a.png"]).conversation
    turn(talk, "Draw one.", ["b.png"])
    turn(talk, "Draw one.", ["b.png"], draw_from_all_turns=True)
    newest, everything = draw.drawings
    assert newest.prompt == chat_prompt("Draw one.", 1)
    assert everything.prompt.count(SEE) == 2 and "A fox." in everything.prompt
    assert everything.text.hidden.shape[1] > newest.text.hidden.shape[1]
    assert len(newest.references) == len(everything.references) == 1


def test_fifty_turns_keep_the_newest_images_and_say_what_went(monkeypatch, assistant, turn, files):
    says(monkeypatch, assistant, *["<|img|>"] * 50)
    talk = Conversation()
    limits = Limits(turns=12, images=3)
    for number in range(50):
        files.opened.clear()
        said = turn(talk, f"Draw {number}.", limits=limits)
        talk = said.conversation
        assert len(talk.turns) <= 12 and len(talk.images) <= 4 and len(files.opened) <= 3
    assert talk.images == ("drawn47.png", "drawn48.png", "drawn49.png", "drawn50.png")
    assert said.dropped.images == ("drawn46.png",) and said.dropped.turns == 2
    assert said.notes == tuple(said.dropped.notes())
    assert talk.turns[1].images_dropped == 1
    assert Conversation.from_json(talk.to_json()) == talk


def test_the_token_limit_counts_images_as_the_model_sees_them(monkeypatch, assistant, turn):
    says(monkeypatch, assistant, "A.", "B.", "C.")
    talk = turn(Conversation(), "What?", ["a.png"]).conversation
    prompt = conversation_prompt([*talk.turns, Turn(Role.USER, "And?")], assistant.tokenizer)
    # 60x40 pixels are seen as 84x56: six tokens in the place of one.
    length = len(assistant.tokenizer.encode(prompt)) + 5
    assert not turn(talk, "And?", limits=Limits(tokens=length)).dropped.images
    assert turn(talk, "And?", limits=Limits(tokens=length - 1)).dropped.images == ("a.png",)


def test_a_message_longer_than_a_conversation_may_be_is_answered_without_what_came_before(monkeypatch, assistant, turn):
    says(monkeypatch, assistant, "A.", "B.")
    talk = turn(Conversation(), "What?", ["a.png"]).conversation
    said = turn(talk, "And?", ["b.png"], limits=Limits(tokens=1))
    assert said.conversation.turns == (Turn(Role.USER, "And?", ("b.png",)), Turn(Role.ASSISTANT, "B."))
    assert said.dropped.turns == 2


def test_a_picture_of_an_earlier_turn_that_is_gone_is_told_of(monkeypatch, assistant, turn, files):
    says(monkeypatch, assistant, "A fox.", "Yes.")
    talk = turn(Conversation(), "What is it?", ["a.png"]).conversation
    files.names.remove("a.png")
    said = turn(talk, "Sure?")
    assert said.notes == ("These images of earlier turns are gone: a.png.",)
    assert said.conversation.turns[0].images == () and said.conversation.turns[0].images_dropped == 1


def test_an_answer_that_is_cut_off_says_so(monkeypatch, assistant, turn):
    says(monkeypatch, assistant, "A red fox.")
    assert turn(Conversation(), "What?", max_new_tokens=4).notes == ("The answer was cut off after 4 tokens.",)


# What goes wrong


@pytest.mark.parametrize(
    ("message", "images", "error", "text"),
    [
        (" ", [], ConversationError, "message is empty"),
        ("What?", ["gone.png"], ConversationError, "'gone.png' cannot be opened: no gone.png"),
        ("What?", ["../a.png"], ConversationError, "no relative file name"),
        ("What?", ["a.png"] * 6, ConversationError, "6 images"),
        ("<|image_pad|>?", ["a.png"], PromptError, "you wrote"),
    ],
)
def test_messages_that_cannot_be_sent_are_refused(turn, message, images, error, text):
    with pytest.raises(error, match=text):
        turn(Conversation(), message, images)


def test_a_mode_can_be_a_word_and_no_other_word_is_one(monkeypatch, assistant, turn, draw):
    prompts = says(monkeypatch, assistant, "A fox.")
    assert turn(Conversation(), "Draw a fox.", mode="draw").turn.images == ("drawn1.png",)
    assert turn(Conversation(), "What is it?", mode="text").turn.text == "A fox." and len(draw.drawings) == 1
    prompts.clear()
    with pytest.raises(ConversationError, match="no mode 'paint'; choose one of auto, text, draw"):
        turn(Conversation(), "Draw a fox.", mode="paint")
    assert not prompts


def test_a_drawing_without_a_picture_is_refused(assistant, files):
    with pytest.raises(ConversationError, match="gave no picture"):
        reply(assistant, Conversation(), "Draw.", load=files, draw=lambda drawing: [], mode=Mode.DRAW)


@pytest.mark.parametrize("mode", [Mode.TEXT, Mode.DRAW])
def test_cancelling_leaves_conversation_and_model_as_they_were(assistant, files, mode):
    def cancel(*_):
        raise InterruptedError

    talk = Conversation((Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "hello")))
    settings = {"load": files, "draw": Draw(files), "max_new_tokens": 4}
    before = reply(assistant, talk, "What?", mode=Mode.TEXT, **settings)
    with pytest.raises(InterruptedError):
        reply(assistant, talk, "What?", mode=mode, on_step=cancel, **settings | {"draw": cancel})
    assert len(talk.turns) == 2
    assert reply(assistant, talk, "What?", mode=Mode.TEXT, **settings) == before


def test_the_built_in_model_draws_in_a_chat_without_a_host(tmp_path):
    from omnigen2_core.assistant import Assistant
    from omnigen2_core.images import from_pixels
    from omnigen2_core.nano.encoder import PIXELS
    from omnigen2_core.pipeline import OmniGen2Pipeline

    pipeline = OmniGen2Pipeline.from_folder(WEIGHTS, device="cpu")
    assistant = Assistant(pipeline.encoder, pipeline.tokenizer, PIXELS)

    def draw(drawing):
        references = [[pipeline.encode_reference(picture) for picture in drawing.references]]
        noise = pipeline.noise([1], 96, 96)
        latents = pipeline.sample_latents(drawing.text, drawing.negative, noise, references, steps=2)
        [picture] = from_pixels(pipeline.decode(latents))
        name = f"{len(list(tmp_path.iterdir()))}.png"
        picture.save(tmp_path / name)
        return [name]

    settings = {"load": lambda name: Image.open(tmp_path / name), "draw": draw, "mode": Mode.DRAW}
    first = reply(assistant, Conversation(), "A large red circle", **settings)
    second = reply(assistant, first.conversation, "Make it blue", first.turn.images, **settings)
    assert second.conversation.images == ("0.png", "0.png", "1.png")
    assert Image.open(tmp_path / "1.png").size == (96, 96)
