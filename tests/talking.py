"""The golden encoder as one to talk with: a tokenizer for it, and a way to put words into its mouth."""

import json

import torch
from make_checkpoints import golden_config, golden_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from omnigen2_core.assistant import Assistant
from omnigen2_core.mllm import build_mllm, load_mllm_state_dict
from omnigen2_core.prompts import OmniGen2Tokenizer

SPECIAL_TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "endoftext": "<|endoftext|>",
    "img": "<|img|>",
}


def golden_tokenizer(golden, names=SPECIAL_TOKENS) -> Tokenizer:
    """A tokenizer of single bytes that has the golden encoder's special ids, under `names`."""
    special = {number: name for name, number in json.loads((golden / "mllm.json").read_text())["special_ids"].items()}
    first = min(special)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"<unused{i}>" for i in range(first - len(alphabet))]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for number in range(first, max(special) + 1):
        token = names[special[number]] if number in special else f"<|reserved{number}|>"
        tokenizer.add_special_tokens([AddedToken(token, special=True)])
    return tokenizer


def golden_assistant(golden, names=SPECIAL_TOKENS) -> Assistant:
    """The golden encoder, whose words mean nothing, in fp32."""
    model = build_mllm(golden_config(golden, "mllm"), dtype=torch.float32)
    load_mllm_state_dict(model, golden_weights(golden, "mllm"))
    return Assistant(model.requires_grad_(False), OmniGen2Tokenizer(golden_tokenizer(golden, names)))


def says(monkeypatch, assistant: Assistant, *answers: str, spelled: bool = False) -> list[str]:
    """Makes the model write these answers, one a prompt, and end each itself. Returns the prompts as they come in.

    Names of special tokens in an answer are those tokens, or, `spelled`, the letters of their names.
    """
    prompts: list[str] = []
    tokens: list[int] = []
    tokenize, logits = assistant.tokenizer.tokenize, assistant.model.logits
    for answer in answers:
        for part in answer if spelled else [answer]:
            tokens += assistant.tokenizer.encode(part)
        if not tokens or tokens[-1] not in assistant.tokenizer.special.stop or not answer:
            tokens.append(assistant.tokenizer.special.im_end)

    def scripted(hidden, head=None):
        scores = torch.zeros_like(logits(hidden, head))
        scores[:, tokens.pop(0)] = 50.0
        return scores

    def overheard(texts, *arguments, **options):
        prompts.extend(texts)
        return tokenize(texts, *arguments, **options)

    monkeypatch.setattr(assistant.model, "logits", scripted)
    monkeypatch.setattr(assistant.tokenizer, "tokenize", overheard)
    return prompts
