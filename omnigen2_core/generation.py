"""How the next token is chosen from its scores, and how tokens become text while they are being written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from .errors import GenerationError
from .prompts import OmniGen2Tokenizer

LEAST_TEMPERATURE = 1e-6
"""The smallest that is not 0: Qwen2.5-VL's own setting. fp32 scores divided by less could overflow."""

SEEDS = 2**64
"""Seeds are 0 up to this; a host's go no further."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, with the meanings that transformers gives these settings.

    Attributes:
        temperature: 0 takes the likeliest token; above it, from 1e-6, larger values choose more freely.
        top_k: Only so many of the likeliest tokens remain, ties with the last included; 0 for all.
        top_p: Only the likeliest tokens that together reach this probability remain, at least one; 1 for all.
        repetition_penalty: Above 1, tokens that the prompt or the answer already has become less likely; 1 is off.

    Raises:
        GenerationError: A value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, usable, range_ in (
            ("temperature", self.temperature == 0 or self.temperature >= LEAST_TEMPERATURE, "0, or 1e-6 and more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 <= self.top_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0"),
        ):
            value = getattr(self, name)
            if not usable or not math.isfinite(value):
                raise GenerationError(f"The {name} is {value}; set it to {range_}.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, so that no seed matters."""
        return self.temperature == 0


GREEDY = Sampling()


def adjusted(scores: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """fp32 scores [B, vocabulary] after all settings, excluded tokens at minus infinity.

    `seen` [B, vocabulary] is true for tokens that the repetition penalty concerns. The order is that of transformers:
    repetition penalty, temperature, top-k, top-p; greedy choice only has the first.
    """
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if sampling.greedy:
        return scores
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if sampling.top_p < 1:
        ascending, order = scores.sort(dim=-1)
        outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        outside[..., -1] = False
        scores = scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return scores


class Sampler:
    """Chooses tokens for `generate_tokens(sample=...)`; made for one run.

    Every row has a random number generator of its own, on the CPU, so that neither the device nor the other rows of
    a batch change what a seed gives.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], mask: Tensor):
        """`seeds` and `mask` [B, L] (1 = real) are those of the prompts. Padding is not penalised as a repetition.

        Raises GenerationError when choice by chance has not one seed a row.
        """
        if not sampling.greedy and len(seeds) != len(mask):
            raise GenerationError(f"Got {len(seeds)} seeds for {len(mask)} prompts; give one for each prompt.")
        self.sampling = sampling
        self.mask = mask.bool()
        self.generators = [torch.Generator().manual_seed(seed % SEEDS) for seed in seeds]

    def __call__(self, scores: Tensor, ids: Tensor) -> Tensor:
        """Tokens [B] from fp32 scores [B, vocabulary] and the ids so far [B, L], prompts included."""
        scores = adjusted(scores, self._seen(scores, ids), self.sampling)
        if self.sampling.greedy:
            return scores.argmax(dim=-1)
        # The largest of scores plus Gumbel noise is a draw from their softmax. Unlike a draw by a cumulated sum, it
        # does not depend on the order in which a device adds.
        noise = torch.stack([self._exponential(scores.shape[-1], generator) for generator in self.generators])
        return (scores - noise.to(scores.device).log()).argmax(dim=-1)

    @staticmethod
    def _exponential(count: int, generator: torch.Generator) -> Tensor:
        noise = torch.empty(count, dtype=torch.float32).exponential_(generator=generator)
        return noise.clamp_min_(torch.finfo(torch.float32).tiny)

    def _seen(self, scores: Tensor, ids: Tensor) -> Tensor:
        written = self.mask.new_ones(len(ids), ids.shape[1] - self.mask.shape[1])
        real = torch.cat([self.mask, written], dim=1)
        nowhere = scores.shape[-1]
        seen = torch.zeros(len(ids), nowhere + 1, dtype=torch.bool, device=scores.device)
        return seen.scatter(1, ids.masked_fill(~real, nowhere), True)[:, :nowhere]


class TextStream:
    """Text of an answer as it grows: never a part of a character, never a special token."""

    def __init__(self, tokenizer: OmniGen2Tokenizer):
        self.tokenizer = tokenizer
        self.text = ""

    def update(self, ids: Sequence[int]) -> str:
        """What the text has gained with `ids`, all tokens of the answer so far. The pieces together are the answer.

        A character whose last bytes have not come waits for them; if they never come, it is left out.
        """
        text = readable(self.tokenizer, ids)
        new = text[len(self.text) :]
        self.text += new
        return new


def readable(tokenizer: OmniGen2Tokenizer, ids: Sequence[int]) -> str:
    """The text of an answer's tokens without special tokens and without an unfinished character at the end."""
    return tokenizer.decode_text(ids).rstrip("\N{REPLACEMENT CHARACTER}")
