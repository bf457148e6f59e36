"""Questions about pictures: alone or in company, as they are written, and within their limits."""

import numpy as np
import pytest
import torch
from make_checkpoints import golden_config
from PIL import Image
from talking import golden_assistant, says

from omnigen2_core.assistant import KEPT_PICTURES, Assistant
from omnigen2_core.errors import CheckpointError, GenerationError, PromptError, ReferenceImageError, SizeError
from omnigen2_core.generation import Sampling
from omnigen2_core.mllm import build_mllm
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.presets import PRESETS
from omnigen2_core.prompts import chat_prompt
from omnigen2_core.understanding import ask
from omnigen2_core.vision import PixelConfig
from omnigen2_core.yes_no import ask_yes_no

CHANCE = Sampling(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def assistant(golden):
    return golden_assistant(golden)


@pytest.fixture
def talker(golden):
    """One whose words a test may put in its mouth."""
    return golden_assistant(golden)


def picture(width, height, seed=0, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if mode == "L" else values)


QUESTIONS = ["what is this?", "compare image 1 with image 2, please", "hello", "which is the odd one out?"]
IMAGES = [[picture(60, 40, 1)], [picture(56, 56, 2), picture(30, 90, 3)], [], [picture(40, 40, i) for i in range(5)]]


@pytest.mark.parametrize("sampling", [Sampling(), CHANCE], ids=["greedy", "by chance"])
def test_every_question_gets_in_a_batch_what_it_gets_alone(assistant, sampling):
    settings = {"sampling": sampling, "max_new_tokens": 12}
    together = ask(assistant, QUESTIONS, IMAGES, seed=3, batch=4, **settings)
    for row, (question, images) in enumerate(zip(QUESTIONS, IMAGES)):
        [alone] = ask(assistant, question, [images], seed=3 + row, **settings)
        assert together[row] == alone
    assert ask(assistant, QUESTIONS, IMAGES, seed=3, batch=3, **settings) == together
    assert len({answer.tokens for answer in together}) == 4


def test_prompts_are_the_references_padded_on_the_left(assistant):
    chats = [chat_prompt("look", 1), chat_prompt("hi")]
    prompt = assistant.prepare(chats, [[picture(56, 84)], []])
    width = prompt.ids.shape[1]
    hello = assistant.tokenizer.encode(chats[1])
    assert prompt.ids[1].tolist() == [assistant.tokenizer.special.pad] * (width - len(hello)) + hello
    assert prompt.mask[1].tolist() == [0] * (width - len(hello)) + [1] * len(hello)
    assert prompt.ids[0].tolist().count(assistant.tokenizer.special.image_pad) == 2 * 3
    assert prompt.grid.tolist() == [[1, 6, 4]]


@pytest.fixture
def looked_at(assistant):
    """How many pictures the model has looked at in each of its looks, from here on."""
    assistant.forget()
    counts = []
    handle = assistant.model.visual.register_forward_pre_hook(lambda module, given: counts.append(len(given[1])))
    yield counts
    handle.remove()


def test_a_picture_is_looked_at_once_however_often_it_is_asked_about(assistant, looked_at):
    first, second = picture(56, 84, 1), picture(56, 84, 2)
    chats = [chat_prompt("look", 1)] * 3
    together = assistant.prepare(chats, [[first], [second], [first.copy()]])
    assert ask_yes_no(assistant, ["is it?"], [[second]]) and assistant.encode(chat_prompt("draw it", 1), [first])
    assert looked_at == [1, 1], "each by itself: what looking takes grows with all that is looked at together"
    alone = []
    for shown in (first, second, first):
        assistant.forget()
        alone.append(assistant.prepare(chats[:1], [[shown]]).visual)
    assert looked_at == [1] * 5
    torch.testing.assert_close(together.visual, torch.cat(alone), atol=1e-5, rtol=0)


def test_only_pictures_that_are_alike_as_a_whole_are_taken_for_one(assistant, looked_at):
    black = Image.new("RGB", (56, 84))
    turned = Image.new("RGB", (84, 56))
    dot = black.copy()
    dot.putpixel((55, 83), (0, 0, 1))
    prompt = assistant.prepare([chat_prompt("look", 3)], [[black, turned, dot]])
    assert looked_at == [1] * 3 and prompt.grid.tolist() == [[1, 6, 4], [1, 4, 6], [1, 6, 4]]


def test_of_many_pictures_the_last_are_kept(assistant, looked_at):
    pictures = [picture(56, 56, seed) for seed in range(KEPT_PICTURES + 2)]
    for shown in (*pictures, pictures[-1], pictures[2], pictures[0], pictures[2], pictures[3]):
        assistant.prepare([chat_prompt("look", 1)], [[shown]])
    # The first two are gone; seeing the first again takes the place of what was asked about longest ago, the fourth.
    assert len(looked_at) == len(pictures) + 2
    assert len(assistant.prepare([chat_prompt("look", len(pictures))], [pictures]).grid) == len(pictures)


def test_of_large_pictures_fewer_are_kept_but_always_those_of_the_prompt_at_hand(monkeypatch, assistant, looked_at):
    monkeypatch.setattr("omnigen2_core.assistant.KEPT_TOKENS", 12)
    pictures = [picture(56, 84, seed) for seed in range(4)]  # of 6 tokens each
    for shown in (pictures[:1], pictures[1:2], pictures[:2], pictures[2:3], pictures[1:3]):
        assistant.prepare([chat_prompt("look", len(shown))], [shown])
    assert len(looked_at) == 3, "two are kept"
    assistant.prepare([chat_prompt("look", 1)], [pictures[:1]])
    assert len(looked_at) == 4, "the oldest went"
    for _ in range(2):
        assistant.prepare([chat_prompt("look", 4)], [pictures])
    assert len(looked_at) == 6, "more than may be kept, and yet asked about twice at the price of one look"


def test_every_image_changes_the_answer(assistant):
    images = [[picture(56, 56, seed)] for seed in range(3)]
    answers = ask(assistant, ["what is it?"] * 3, images, max_new_tokens=12)
    assert len({answer.tokens for answer in answers}) == 3


def test_images_count_as_people_see_them(assistant):
    """Transparency is laid over white, turned photographs are turned."""
    clear = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    white = Image.new("RGB", (56, 56), (255, 255, 255))
    first, second = ask(assistant, ["what is it?"] * 2, [[clear], [white]], max_new_tokens=12)
    assert first == second


def test_text_comes_piece_by_piece_under_the_number_of_its_question(assistant):
    heard = {row: "" for row in range(4)}
    steps = []

    def on_text(row, piece):
        assert piece
        heard[row] += piece

    answers = ask(
        assistant, QUESTIONS, IMAGES, sampling=CHANCE, max_new_tokens=12, batch=2, on_text=on_text, on_step=steps.append
    )
    assert [heard[row] for row in range(4)] == [answer.text for answer in answers]
    assert steps == [*range(1, 13)] * 2


def test_an_answer_says_whether_it_was_finished(monkeypatch, talker):
    says(monkeypatch, talker, "a fox", "a fox")
    [whole], [cut] = (ask(talker, "what is it?", max_new_tokens=limit) for limit in (6, 5))
    assert (whole.text, whole.complete, len(whole.tokens)) == ("a fox", True, 6)
    assert (cut.text, cut.complete, len(cut.tokens)) == ("a fox", False, 5)


def test_a_question_is_never_answered_by_announcing_a_picture(monkeypatch, assistant):
    img = assistant.tokenizer.special.img
    logits = assistant.model.logits
    eager = torch.nn.functional.one_hot(torch.tensor(img), 1024) * 1000.0
    monkeypatch.setattr(assistant.model, "logits", lambda hidden, head=None: logits(hidden, head) + eager)
    [answer] = ask(assistant, "draw a fox", max_new_tokens=5)
    assert len(answer.tokens) == 5 and img not in answer.tokens


@pytest.mark.parametrize("when", ["on_text", "on_step"])
def test_cancelling_leaves_the_model_usable(assistant, when):
    def cancel(*_):
        raise InterruptedError

    before = ask(assistant, QUESTIONS[0], IMAGES[:1], max_new_tokens=8)
    with pytest.raises(InterruptedError):
        ask(assistant, QUESTIONS[0], IMAGES[:1], max_new_tokens=8, **{when: cancel})
    assert ask(assistant, QUESTIONS[0], IMAGES[:1], max_new_tokens=8) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": [[picture(30, 30)] * 6]}, ReferenceImageError, "Got 6 images for one message"),
        ({"images": [[], []]}, PromptError, "images for 2 questions and 1 questions"),
        ({"questions": "what is <|image_pad|>?", "images": [[picture(30, 30)]]}, PromptError, "Remove '<|image_pad|>'"),
        ({"images": [[picture(1, 300)]]}, SizeError, "1x300"),
        ({"max_new_tokens": 0}, PromptError, "at most 0 tokens"),
        ({"questions": "x" * 4000}, PromptError, "more than the 4096 that the model reads. Shorten it"),
        ({"questions": "x" * 5000, "max_new_tokens": 8000}, PromptError, "Shorten it"),
        ({"max_new_tokens": 4090}, PromptError, "Allow the answer 3966 tokens or fewer."),
        ({"images": [picture(30, 30)]}, ReferenceImageError, r"for every question a list of its pictures: \[\[picture\]\]"),
        ({"images": picture(30, 30)}, ReferenceImageError, r"for every question a list of its pictures: \[\[picture\]\]"),
        ({"batch": 0}, PromptError, "batch is 0; ask at least 1"),
        ({"batch": -1}, PromptError, "batch is -1; ask at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_asked_is_refused(assistant, arguments, error, message):
    with pytest.raises(error, match=message.replace("|", r"\|").replace("?", r"\?")):
        ask(assistant, **{"questions": "what is it?", **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": [picture(30, 30)]}, ReferenceImageError, "for every question a list"),
        ({"images": []}, PromptError, "images for 0 questions and 1 questions"),
        ({"batch": 0}, PromptError, "batch is 0; ask at least 1"),
        ({"batch": -1}, PromptError, "batch is -1; ask at least 1"),
    ],
    ids=["no list", "no pictures", "no batch", "less than none"],
)
def test_what_cannot_be_asked_for_yes_or_no_is_refused(assistant, arguments, error, message):
    with pytest.raises(error, match=message):
        ask_yes_no(assistant, **{"questions": ["is it?"], "images": [[]], **arguments})


def test_chance_needs_a_seed_for_every_answer(assistant):
    with pytest.raises(GenerationError, match="Got 0 seeds for 1 prompts"):
        assistant.write([chat_prompt("hello")], [[]], max_new_tokens=2, sampling=CHANCE)


@pytest.mark.parametrize("changed", [{"patch_size": 8}, {"merge_size": 1}, {"temporal_patch_size": 1}], ids=lambda d: next(iter(d)))
def test_pixels_of_another_model_are_refused_before_anything_is_looked_at(assistant, changed):
    [(name, value)] = changed.items()
    with pytest.raises(CheckpointError, match=f"{name} {value}, and the encoder takes {getattr(PixelConfig(), name)}"):
        Assistant(assistant.model, assistant.tokenizer, PixelConfig(**changed))


def test_an_encoder_without_eyes_answers_questions_and_refuses_pictures(golden, assistant):
    blind = build_mllm(golden_config(golden, "mllm"), dtype=torch.float32, device="cpu", vision=False)
    blind = Assistant(blind.requires_grad_(False), assistant.tokenizer)
    assert len(ask(blind, "hello", max_new_tokens=2)) == 1
    with pytest.raises(CheckpointError, match="cannot look at images"):
        ask(blind, "what is it?", [[picture(30, 30)]])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_asked(assistant, name):
    preset = PRESETS[name]
    images = [picture(40, 40, i) for i in range(preset.images)]
    preset.check(len(images))
    [answer] = ask(assistant, preset.question, [images], max_new_tokens=2)
    assert answer.tokens
    with pytest.raises(PromptError, match=f"about {preset.images} image"):
        preset.check(preset.images + 1)


def test_the_built_in_model_tells_backgrounds_apart():
    from omnigen2_core.nano.encoder import PIXELS
    from omnigen2_core.nano.world import Scene, Thing, render
    from omnigen2_core.pipeline import OmniGen2Pipeline

    pipeline = OmniGen2Pipeline.from_folder(WEIGHTS, device="cpu")
    assistant = Assistant(pipeline.encoder, pipeline.tokenizer, PIXELS)
    grounds = ["blue", "white", "black"]
    thing = Thing(4, "red", "circle", "large")
    images = [[Image.fromarray(render(Scene(ground, (thing,)), 96, 96))] for ground in grounds]
    answers = ask(assistant, ["What color is the background?"] * 3, images)
    assert [answer.text for answer in answers] == grounds
    assert all(answer.complete for answer in answers)
