"""Templates and token ids equal the reference's, for Qwen's real files and for a tokenizer of another size."""

import json
from pathlib import Path

import pytest
import torch
from needed import missing
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from omnigen2_core.errors import CheckpointError, PromptError
from omnigen2_core.prompts import (
    DEFAULT_NEGATIVE_PROMPT,
    DROPPED_TEXT_SYSTEM_PROMPT,
    SYSTEM_PROMPT,
    OmniGen2Tokenizer,
    chat_prompt,
    generation_prompt,
)

ROOT = Path(__file__).resolve().parent.parent
FACTS = json.loads((ROOT / "tests" / "golden" / "prompts.json").read_text(encoding="utf-8"))
QWEN_FILES = ROOT / ".host" / "ComfyUI" / "comfy" / "text_encoders" / "qwen25_tokenizer"
NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "img")
SPECIAL_TOKENS = [f"<|{name}|>" for name in NAMES]


@pytest.fixture(scope="module")
def qwen():
    if not QWEN_FILES.is_dir():
        missing(f"no Qwen2.5 tokenizer files in {QWEN_FILES}: run the tests through `python dev.py test`, which puts them there")
    return OmniGen2Tokenizer.from_folder(QWEN_FILES)


def write_byte_tokenizer(folder: Path, special_tokens=SPECIAL_TOKENS) -> None:
    """A tokenizer.json of single bytes and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in special_tokens])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def small(tmp_path):
    write_byte_tokenizer(tmp_path)
    return OmniGen2Tokenizer.from_folder(tmp_path)


def test_texts_are_the_references():
    assert SYSTEM_PROMPT == FACTS["system_prompt"]
    assert DROPPED_TEXT_SYSTEM_PROMPT == FACTS["system_prompt_when_training_drops_text"]
    assert DEFAULT_NEGATIVE_PROMPT == FACTS["default_negative_prompt_of_cli_and_apps"]
    assert generation_prompt("", system=DROPPED_TEXT_SYSTEM_PROMPT) == FACTS["training_dropped_text"]
    assert generation_prompt(None) == generation_prompt("")


@pytest.mark.parametrize("row", FACTS["rows"], ids=lambda row: row["name"])
def test_generation_prompts_have_the_references_ids(qwen, row):
    text = generation_prompt(row["prompt"])
    assert row["text"] in (text, None)
    assert qwen.encode(text) == row["ids"]


@pytest.mark.parametrize("row", FACTS["chat_rows"], ids=lambda row: row["name"])
def test_chat_prompts_have_the_references_ids(qwen, row):
    text = chat_prompt(row["prompt"], row["n_images"])
    assert text == row["text"]
    assert qwen.encode(text) == row["ids_before_image_expansion"]


def test_a_batch_is_padded_on_the_right(qwen):
    example = FACTS["batch_example"]
    batch = qwen.tokenize([generation_prompt(prompt) for prompt in example["prompts"]], 1024)
    assert batch.ids.tolist() == example["input_ids"]
    assert batch.mask.tolist() == example["attention_mask"]
    assert batch.truncated == (0, 0, 0)


def test_a_long_prompt_is_cut_as_in_the_reference_and_says_by_how_much(qwen):
    row = next(row for row in FACTS["rows"] if row["name"] == "very_long")
    batch = qwen.tokenize([generation_prompt(row["prompt"])], 1024)
    assert batch.ids[0].tolist() == row["ids_truncated_1024"]
    assert batch.truncated == (row["n_tokens"] - 1024,)


def test_special_ids_are_qwens(qwen):
    expected = FACTS["special_token_ids"]
    special = qwen.special
    assert special.img == FACTS["omnigen2_extra_tokens"]["id"]
    assert set(special.stop) == set(FACTS["stop_ids_for_chat_generation"])
    for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad"):
        assert getattr(special, name) == expected[f"<|{name}|>"]
    assert special.pad == FACTS["padding"]["pad_id"]


@pytest.mark.parametrize("row", FACTS["rows"], ids=lambda row: row["name"])
def test_decoding_gives_the_text_back(qwen, row):
    text = generation_prompt(row["prompt"])
    assert qwen.decode(qwen.encode(text)) == text


def test_special_ids_come_from_the_tokenizer_at_hand(small):
    first = len(pre_tokenizers.ByteLevel.alphabet())
    assert (small.special.endoftext, small.special.img) == (first, first + 6)
    assert small.encode("<|img|>") == [first + 6]
    assert small.vocabulary_size == first + 7


def test_weights_and_brackets_stay_text(small):
    text = "a (red:1.3) car, ((best)), [low]"
    assert small.decode(small.encode(text)) == text
    assert len(small.encode(text)) == len(text)


def test_half_a_surrogate_pair_does_not_break_a_prompt(small):
    assert small.decode(small.encode("dog \ud83d!")) == "dog \ufffd!"


def test_image_places_are_repeated_and_never_cut(small):
    pad = small.special.image_pad
    texts = [chat_prompt("join them", 2), chat_prompt("look", 1)]
    batch = small.tokenize(texts, 5, image_tokens=[[3, 4], [2]])
    assert (batch.ids == pad).sum(dim=1).tolist() == [7, 2]
    assert batch.truncated == (0, 0)
    ids = batch.ids[0].tolist()
    start = ids.index(small.special.vision_start)
    assert ids[start + 1 : start + 5] == [pad] * 3 + [small.special.vision_end]


def test_an_image_place_typed_by_the_user_is_refused(small):
    with pytest.raises(PromptError, match="2 places for images, but the number of images is 1"):
        small.tokenize([chat_prompt("what is <|image_pad|>?", 1)], image_tokens=[[4]])


def test_no_prompt_at_all_is_refused(small):
    with pytest.raises(PromptError, match="at least one"):
        small.tokenize([])


def test_slow_files_are_read_when_there_is_no_tokenizer_json(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: number for number, byte in enumerate(alphabet)} | {"ab": len(alphabet)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    numbers = {token: len(vocabulary) + i for i, token in enumerate(SPECIAL_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(numbers), encoding="utf-8")
    tokenizer = OmniGen2Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("ab<|img|>") == [len(alphabet), numbers["<|img|>"]]
    assert torch.equal(tokenizer.tokenize(["ab"]).ids, torch.tensor([[len(alphabet)]]))

    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|img|>": 9999}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="9999"):
        OmniGen2Tokenizer.from_folder(tmp_path)


def test_missing_damaged_and_foreign_tokenizers_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        OmniGen2Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read"):
        OmniGen2Tokenizer.from_folder(tmp_path)
    write_byte_tokenizer(tmp_path, SPECIAL_TOKENS[:3])
    with pytest.raises(CheckpointError, match=r"<\|vision_start\|>, <\|vision_end\|>, <\|image_pad\|>"):
        OmniGen2Tokenizer.from_folder(tmp_path)


def test_a_config_with_other_ids_than_the_tokenizers_is_refused(small):
    small.check({"image_token_id": small.special.image_pad})
    with pytest.raises(CheckpointError, match="image_token_id 151655"):
        small.check({"image_token_id": 151655})
