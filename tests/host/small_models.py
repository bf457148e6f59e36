"""Models for tests in the host: the golden weights as a folder with a tokenizer, and an encoder as a single file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from make_checkpoints import golden_config, golden_weights, save_single, write_folder

FOLDER = "tests/golden"
"""The golden model's name in OmniGen2LoadFolder, one folder down as a publisher's would be."""

TEXT_LIMIT = 400
"""Tokens that the golden model's profile reads; its byte tokenizer spends about 100 on the template."""


def install_folder(models: Path, golden: Path, name: str = FOLDER) -> str:
    """Puts the golden model into models/diffusers/ of a server that may be running; returns its name."""
    path = models / "diffusers" / name
    if not path.is_dir():
        tokenizer = write_tokenizer(models.parent / "tokenizer", golden)
        profile = {"max_text_tokens": TEXT_LIMIT, "max_pixels": 160 * 160, "max_side": 160, "min_reference_side": 64}
        write_folder(path, golden, tokenizer=tokenizer, profile=profile)
    return name


def write_tokenizer(folder: Path, golden: Path) -> Path:
    """A tokenizer of single bytes with Qwen's special tokens at the ids of the golden model."""
    from tokenizers.pre_tokenizers import ByteLevel

    ids = json.loads((golden / "mllm.json").read_text(encoding="utf-8"))["special_ids"]
    special = {
        f"<|{'image_pad' if name == 'image' else 'video_pad' if name == 'video' else name}|>": i
        for name, i in ids.items()
    }
    vocabulary = {byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {
        f"<unused{i}>": i for i in range(len(vocabulary), max(special.values()) + 1) if i not in special.values()
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, **flags} for token, i in sorted(special.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocabulary | special, "merges": []},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def write_encoder(path: Path, golden: Path, *, vision: bool = True) -> Path:
    """A single-file encoder that reads Qwen2.5's own vocabulary: the golden one with a larger embedding, in fp16."""
    config = golden_config(golden, "mllm") | {
        "vocab_size": 151936,
        "image_token_id": 151655,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
    }
    weights = {
        name: w for name, w in golden_weights(golden, "mllm").items() if vision or not name.startswith("visual.")
    }
    rows = torch.randn(151936, config["hidden_size"], generator=torch.Generator().manual_seed(0))
    weights["model.embed_tokens.weight"] = 0.5 * rows
    return save_single(path, {name: w.to(torch.float16) for name, w in weights.items()}, config)
