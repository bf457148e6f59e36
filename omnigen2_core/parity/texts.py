"""Templates and token ids. The ids need the files of Qwen's tokenizer, which golden folders do not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from ..prompts import (
    DEFAULT_NEGATIVE_PROMPT,
    DROPPED_TEXT_SYSTEM_PROMPT,
    SYSTEM_PROMPT,
    OmniGen2Tokenizer,
    chat_prompt,
    generation_prompt,
)
from .folder import GoldenFolder
from .report import Row, Ruler

_TRUNCATED = "ids_truncated_"


def replay_texts(folder: GoldenFolder, tokenizer_folder: Path | None) -> Iterator[Row]:
    """Every prompt as text and as ids; without a tokenizer the ids are listed and not replayed."""
    ruler, golden = Ruler("prompts"), folder.json("prompts")
    yield ruler.exact("templates", _templates(golden))
    rows, chat_rows = golden.get("rows", []), golden.get("chat_rows", [])
    yield ruler.exact(
        "texts", [(generation_prompt(row["prompt"]), row["text"]) for row in rows if row.get("text") is not None]
    )
    yield ruler.exact("chat texts", [(chat_prompt(row["prompt"], row["n_images"]), row["text"]) for row in chat_rows])
    if tokenizer_folder is None:
        yield ruler.skipped("ids", "no tokenizer files; name their folder with --tokenizer")
        return
    yield from _replay_ids(ruler, golden, OmniGen2Tokenizer.from_folder(tokenizer_folder))


def _templates(golden: dict) -> list[tuple[object, object]]:
    mine = {
        "generation_template": generation_prompt("{prompt}"),
        "chat_template_no_image": chat_prompt("{prompt}"),
        "system_prompt": SYSTEM_PROMPT,
        "system_prompt_when_training_drops_text": DROPPED_TEXT_SYSTEM_PROMPT,
        "training_dropped_text": generation_prompt("", system=DROPPED_TEXT_SYSTEM_PROMPT),
        "default_negative_prompt_of_cli_and_apps": DEFAULT_NEGATIVE_PROMPT,
    }
    return [(mine[name], golden[name]) for name in mine if name in golden]


def _replay_ids(ruler: Ruler, golden: dict, tokenizer: OmniGen2Tokenizer) -> Iterator[Row]:
    def ids(text: str, max_length: int | None = None) -> list[int]:
        return tokenizer.tokenize([text], max_length).ids[0].tolist()

    for row in golden.get("rows", ()):
        text = generation_prompt(row["prompt"])
        pairs = [(ids(text), row["ids"])]
        for key in row:
            if key.startswith(_TRUNCATED):
                pairs.append((ids(text, int(key[len(_TRUNCATED):])), row[key]))
        yield ruler.exact(f"{row['name']} ids", pairs)
    for row in golden.get("chat_rows", ()):
        text = chat_prompt(row["prompt"], row["n_images"])
        yield ruler.exact(f"{row['name']} ids", [(ids(text), row["ids_before_image_expansion"])])
    if "batch_example" in golden:
        example = golden["batch_example"]
        batch = tokenizer.tokenize([generation_prompt(prompt) for prompt in example["prompts"]])
        pairs = [(batch.ids.tolist(), example["input_ids"]), (batch.mask.tolist(), example["attention_mask"])]
        yield ruler.exact("batch_example ids", pairs)
    if "stop_ids_for_chat_generation" in golden:
        stop = (sorted(tokenizer.special.stop), sorted(golden["stop_ids_for_chat_generation"]))
        yield ruler.exact("stop ids", [stop])
