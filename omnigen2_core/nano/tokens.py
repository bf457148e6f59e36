"""Building the nano model's tokenizer: Qwen's kind, with a small vocabulary of the world's words.

Any text can be tokenised: what is no known word becomes its UTF-8 bytes. The fixed sentences of the prompt template
are one token each, which keeps prompts short.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..prompts import DEFAULT_NEGATIVE_PROMPT, DROPPED_TEXT_SYSTEM_PROMPT, SYSTEM_PROMPT, WORD_PATTERN
from . import wording as w
from .edits import ORDINALS
from .questions import NUMBERS
from .world import COLOURS, PLACES, SHAPES

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|img|>",
)  # fmt: skip
SENTENCES = (SYSTEM_PROMPT, DROPPED_TEXT_SYSTEM_PROMPT, DEFAULT_NEGATIVE_PROMPT)
PHRASES = (
    " at the", " in the", " on the", " to the", " on a", " on an", " top left", " top right", " bottom left", " bottom right", " upper left",
    " upper right", " lower left", " lower right", " from image", " shape from image", " object from image", " background", " corner",
)  # fmt: skip
COMMON = """a an the and or of to in on at with from it is are was be not no yes there this that these those one two three four five first
second third fourth fifth image images picture pictures shape shapes object objects color colour colors background ground user system
assistant put place draw paint make turn change move add remove delete take away replace into combine show shows nothing all everything else
large big small little tiny larger smaller bigger top bottom left right middle center centre upper lower corner side above below between
next what where which how many do does did you see describe count compare same different both only should must instead wrong missing correct
right satisfied instruction image1 because but has have had been will would can could please keep leave as its them they he she we I my your
more less than too also again now then here done good bad better best question answer scene text word words write read list looks like
instructions generate generates create new old other another each every any some none out up down over under inside outside without just
pink gray grey brown cyan star heart hexagon cat dog house tree sun car person face sky water red-green photo style night day"""


def world_words() -> list[str]:
    """Every word that deserves a token of its own."""
    words = set(COMMON.split()) | set(COLOURS) | set(SHAPES) | set(ORDINALS) | set(NUMBERS)
    for group in (*w.SHAPE_NAMES.values(), *w.SIZE_NAMES.values(), *w.PLACE_NAMES, *w.SCENE_FORMS, PLACES):
        for text in group:
            words |= {part.strip("{},.:;") for part in text.split() if "{" not in part}
    chinese = [*w.ZH_COLOURS.values(), *w.ZH_SHAPES.values(), *w.ZH_SIZES.values(), *w.ZH_PLACES]
    chinese += ["背景", "是", "有", "一个", "把", "图", "的", "图形", "放在", "变成", "改成", "换成", "删除", "去掉", "移到", "在", "加", "画", "，", "。"]
    return sorted(words - {""}) + chinese


def build_tokenizer():
    """The tokenizer, as a `tokenizers.Tokenizer`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    lines = []
    for word in world_words():
        capital = word[0].upper() + word[1:]
        lines += [word, f" {word}", capital, f" {capital}"] * 3 if word.isascii() else [word] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=3, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*SENTENCES, *PHRASES)])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return tokenizer


def special_id(tokenizer, name: str) -> int:
    """Id of a special token."""
    return tokenizer.token_to_id(name)


def save_tokenizer(folder: str | Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into a processor folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "added_tokens_decoder": {
            str(special_id(tokenizer, text)): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                                               "special": text in SPECIAL_TOKENS}
            for text in (*SENTENCES, *PHRASES, *SPECIAL_TOKENS)
        },
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False))
