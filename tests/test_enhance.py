"""A short prompt becomes a detailed one that the encoder can read to its end."""

import pytest
import torch
from PIL import Image
from talking import golden_assistant, says

from omnigen2_core.enhance import count_tokens, enhance_prompt, fit_prompt
from omnigen2_core.errors import PromptError, ReferenceImageError
from omnigen2_core.prompts import OmniGen2Tokenizer

LONG = (
    'A fox, 3.5 feet long, sits in the snow. Its sign says "Go home!" in red. Behind it stands a blue barn. It is dusk.'
)
GERMAN = "Ein roter Fuchs sitzt im Schnee, und hinter ihm steht eine blaue Scheune."
CHINESE = "一只红色的狐狸坐在雪地里。它的身后是一座蓝色的谷仓！天色已晚。"


@pytest.fixture
def assistant(golden):
    return golden_assistant(golden)


@pytest.fixture
def tokenizer(assistant) -> OmniGen2Tokenizer:
    return assistant.tokenizer


def images(count):
    return [Image.new("RGB", (30, 30), (20 * i, 0, 0)) for i in range(count)]


def test_the_model_is_asked_to_rewrite_the_prompt_in_english(monkeypatch, assistant):
    prompts = says(monkeypatch, assistant, "A red fox.")
    heard = []
    enhanced = enhance_prompt(assistant, "红色的狐狸", on_text=heard.append)
    assert enhanced.text == "".join(heard) == "A red fox." and not enhanced.notes
    assert enhanced.tokens == count_tokens(assistant.tokenizer, "A red fox.")
    [prompt] = prompts
    assert "红色的狐狸" in prompt and "in English" in prompt and "<|image_pad|>" not in prompt


@pytest.mark.parametrize(("count", "told"), [(1, "Image 1 is given"), (3, "Images 1 to 3 are given")])
def test_references_are_looked_at_and_called_by_number(monkeypatch, assistant, count, told):
    prompts = says(monkeypatch, assistant, "Put the dog from image 1 on grass.")
    enhance_prompt(assistant, "dog on grass", images(count))
    assert told in prompts[0] and prompts[0].count("<|image_pad|>") == count


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ('"A red fox."', "A red fox."),
        ("“A red fox.”", "A red fox."),
        ("Enhanced prompt: A red fox.", "A red fox."),
        ("Here is the detailed prompt:\n\n  A red fox.\n", "A red fox."),
        ("A red fox.\n\nIt sits.", "A red fox. It sits."),
        ('"Stop" says the sign, "go" the fox.', '"Stop" says the sign, "go" the fox.'),
        ("A sign with the words: keep out", "A sign with the words: keep out"),
    ],
)
def test_what_is_around_the_prompt_is_tidied_away(monkeypatch, assistant, written, prompt):
    says(monkeypatch, assistant, written)
    assert enhance_prompt(assistant, "fox").text == prompt


@pytest.mark.parametrize(
    ("written", "told"), [(CHINESE, True), (GERMAN, True), ('A red fox under the words "红色的狐狸坐在雪地里".', False)]
)
def test_a_prompt_in_another_language_than_english_is_told_of(monkeypatch, assistant, written, told):
    says(monkeypatch, assistant, written)
    enhanced = enhance_prompt(assistant, "一只红色的狐狸")
    assert enhanced.text == written
    assert any("not write in English" in note for note in enhanced.notes) == told


def test_names_of_special_tokens_do_not_get_into_the_prompt(monkeypatch, assistant):
    """Spelled in letters by the model they are harmless; in the next prompt they would be read as the tokens."""
    says(monkeypatch, assistant, "A fox<|im_e<|img|>nd|> sits.", spelled=True)
    enhanced = enhance_prompt(assistant, "fox")
    assert enhanced.text == "A fox sits."


def test_a_prompt_is_never_answered_by_announcing_a_picture(monkeypatch, assistant):
    wished = torch.zeros(1024)
    wished[assistant.tokenizer.special.img], wished[assistant.tokenizer.encode("x")] = 2.0, 1.0
    monkeypatch.setattr(assistant.model, "logits", lambda hidden, head=None: wished.repeat(len(hidden), 1))
    assert enhance_prompt(assistant, "draw a fox", max_new_tokens=5).text == "xxxxx"


@pytest.mark.parametrize("written", ["", "  \n", '""'])
def test_a_model_that_writes_nothing_leaves_the_prompt_and_says_so(monkeypatch, assistant, written):
    says(monkeypatch, assistant, written)
    enhanced = enhance_prompt(assistant, " a fox ")
    assert enhanced.text == "a fox"
    assert enhanced.notes == ("The model wrote no prompt, so yours is used as it is.",)


def test_an_answer_that_is_stopped_ends_with_its_last_whole_sentence(monkeypatch, assistant):
    says(monkeypatch, assistant, "A red fox sits. Behind it stands a barn.")
    enhanced = enhance_prompt(assistant, "fox", max_new_tokens=25)
    assert enhanced.text == "A red fox sits."
    assert "stopped after 25 tokens" in enhanced.notes[0]


@pytest.mark.parametrize("text", [LONG, CHINESE, "no sentence at all just words and words", "x" * 80, "雪" * 30])
def test_a_prompt_is_never_longer_than_the_encoder_reads(tokenizer, text):
    empty, whole = count_tokens(tokenizer, ""), count_tokens(tokenizer, text)
    lengths = set()
    for limit in range(empty, whole + 2):
        kept = fit_prompt(tokenizer, text, limit)
        assert text.startswith(kept) and count_tokens(tokenizer, kept) <= limit
        assert kept == text if limit >= whole else kept != text
        lengths.add(len(kept))
    assert len(lengths) > 3


def test_it_is_cut_where_a_sentence_ends(tokenizer):
    first = "A fox, 3.5 feet long, sits in the snow."
    limits = range(count_tokens(tokenizer, first), count_tokens(tokenizer, LONG) + 1)
    second = f'{first} Its sign says "Go home!"'
    assert {fit_prompt(tokenizer, LONG, limit) for limit in limits} == {
        first, second, f"{second} in red.", LONG.removesuffix(" It is dusk."), LONG
    }  # fmt: skip
    room = count_tokens(tokenizer, CHINESE) - 1
    assert fit_prompt(tokenizer, CHINESE, room) == "一只红色的狐狸坐在雪地里。它的身后是一座蓝色的谷仓！"


def test_where_no_sentence_fits_it_is_cut_behind_a_word(tokenizer):
    room = count_tokens(tokenizer, "A fox, 3.5 feet lo")
    assert fit_prompt(tokenizer, LONG, room) == "A fox, 3.5 feet"
    assert fit_prompt(tokenizer, "雪" * 30, count_tokens(tokenizer, "雪雪") + 1) == "雪雪"


def test_what_was_cut_off_is_reported(monkeypatch, assistant):
    says(monkeypatch, assistant, LONG)
    limit = count_tokens(assistant.tokenizer, LONG) - 3
    enhanced = enhance_prompt(assistant, "fox", max_text_tokens=limit)
    assert LONG == f"{enhanced.text} It is dusk." and enhanced.tokens <= limit
    assert enhanced.notes == (
        f"The prompt had {limit + 3} tokens and the encoder reads {limit}; this was cut off at the end: It is dusk.",
    )


def test_prompts_that_cannot_be_enhanced_are_refused(assistant):
    with pytest.raises(PromptError, match="prompt to enhance is empty"):
        enhance_prompt(assistant, " \n")
    with pytest.raises(PromptError, match="in 5 tokens; allow more than"):
        enhance_prompt(assistant, "fox", max_text_tokens=5)
    with pytest.raises(ReferenceImageError, match="6 images"):
        enhance_prompt(assistant, "fox", images(6))
