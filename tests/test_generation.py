"""Tokens are chosen as transformers chooses them, repeatably, and become text character by character."""

import gc
import random

import pytest
import torch
from talking import SPECIAL_TOKENS, golden_assistant, golden_tokenizer
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicCache

from omnigen2_core.errors import GenerationError
from omnigen2_core.generation import GREEDY, Sampler, Sampling, TextStream, adjusted, readable
from omnigen2_core.mllm import generate_tokens
from omnigen2_core.prompts import OmniGen2Tokenizer

SETTINGS = [
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=5),
    Sampling(temperature=1.0, top_p=0.6),
    Sampling(temperature=1.0, top_p=0.0),
    Sampling(temperature=0.6, top_k=20, top_p=0.8, repetition_penalty=1.5),
    Sampling(temperature=1.8, top_k=7, top_p=0.5, repetition_penalty=0.8),
]


@pytest.fixture(scope="module")
def assistant(golden):
    return golden_assistant(golden)


def seen_in(ids, vocabulary):
    return torch.zeros(len(ids), vocabulary, dtype=torch.bool).scatter(1, ids, True)


def drawn(sampling, scores, seeds, draws=1):
    """What each row's `draws` tokens are when its scores stay the same."""
    prompt = torch.zeros(len(scores), 1, dtype=torch.long)
    sampler = Sampler(sampling, seeds, torch.ones_like(prompt))
    return torch.stack([sampler(scores, prompt) for _ in range(draws)], dim=1)


# What transformers does


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_scores_become_those_of_transformers_own_processors(sampling):
    generator = torch.Generator().manual_seed(1)
    scores = 3 * torch.randn(4, 60, generator=generator)
    scores[:, 10:14] = scores[:, 10:11]  # ties
    scores[:, 30] = float("-inf")
    ids = torch.randint(0, 60, (4, 25), generator=generator)
    expected = scores.clone()
    if sampling.repetition_penalty != 1:
        expected = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, expected)
    if not sampling.greedy:
        expected = TemperatureLogitsWarper(sampling.temperature)(ids, expected)
        if sampling.top_k:
            expected = TopKLogitsWarper(sampling.top_k)(ids, expected)
        if sampling.top_p < 1:
            expected = TopPLogitsWarper(sampling.top_p)(ids, expected)
    assert torch.equal(adjusted(scores, seen_in(ids, 60), sampling), expected)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_the_order_is_that_of_transformers_generate(sampling):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=90, bos_token_id=0, eos_token_id=1, pad_token_id=0)
    model = Qwen2ForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(40)
    prompt = torch.tensor([[3, 14, 15, 89, 65, 35]])
    settings = {"repetition_penalty": sampling.repetition_penalty, "do_sample": not sampling.greedy}
    if not sampling.greedy:
        settings |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    out = model.generate(
        prompt, max_new_tokens=6, return_dict_in_generate=True, output_scores=True, output_logits=True, **settings
    )
    for step, (raw, processed) in enumerate(zip(out.logits, out.scores)):
        ids = out.sequences[:, : prompt.shape[1] + step]
        ours = adjusted(raw.float(), seen_in(ids, 90), sampling)
        assert torch.equal(ours.isinf(), processed.isinf())
        assert (ours - processed)[processed.isfinite()].abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; set it to 0, or 1e-6 and more"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; set it to 0 or more"),
        ({"top_p": 1.2}, "top_p is 1.2; set it to 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; set it to more than 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(GenerationError, match=message):
        Sampling(**settings)


# Chance


def test_a_seed_always_gives_the_same_tokens_and_another_seed_others():
    scores = torch.zeros(1, 500)
    first, again, other = (drawn(Sampling(1.0), scores, [seed], 20) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert (first != other).float().mean() > 0.9


def test_tokens_come_as_often_as_their_scores_say():
    chances = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    tokens = drawn(Sampling(1.0), chances.log()[None], [3], 4000)[0]
    frequencies = torch.bincount(tokens, minlength=5) / 4000
    assert (frequencies - chances).abs().max() <= 0.03
    assert frequencies[4] == 0


def test_the_largest_seed_of_a_host_can_be_used():
    assert drawn(Sampling(1.0), torch.zeros(2, 9), [2**64 - 1, 2**64]).shape == (2, 1)


def test_chance_needs_a_seed_for_every_row():
    with pytest.raises(GenerationError, match="1 seeds for 2 prompts"):
        drawn(Sampling(1.0), torch.zeros(2, 9), [1])


def test_a_row_draws_the_same_whatever_stands_beside_it():
    scores = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    together = drawn(Sampling(1.2, top_k=50), scores, [4, 5, 6], 10)
    for row in range(3):
        assert torch.equal(together[row], drawn(Sampling(1.2, top_k=50), scores[row : row + 1], [4 + row], 10)[0])


def test_padding_is_no_repetition():
    scores = torch.tensor([[2.0, 1.9, 0.0]])
    padded, mask = torch.tensor([[0, 0, 2]]), torch.tensor([[0, 0, 1]])
    assert Sampler(Sampling(repetition_penalty=2.0), (), mask)(scores, padded).item() == 0
    assert Sampler(Sampling(repetition_penalty=2.0), (), torch.ones_like(mask))(scores, padded).item() == 1


def test_what_was_written_is_a_repetition():
    sampler = Sampler(Sampling(repetition_penalty=2.0), (), torch.tensor([[1]]))
    scores = torch.tensor([[2.0, 1.9, 0.0]])
    assert sampler(scores, torch.tensor([[2]])).item() == 0
    assert sampler(scores, torch.tensor([[2, 0]])).item() == 1


def test_suppressed_tokens_are_never_drawn(assistant):
    ids = torch.tensor([assistant.tokenizer.encode("say something")])
    mask = torch.ones_like(ids)
    allowed = [5, 6]
    rest = [token for token in range(1024) if token not in allowed]
    hot = Sampler(Sampling(50.0, repetition_penalty=1.5), [0], mask)
    settings = {"max_new_tokens": 30, "stop_ids": (), "suppress_ids": rest}
    [tokens] = generate_tokens(assistant.model, ids, mask, sample=hot, **settings)
    assert set(tokens) == set(allowed)


# Text as it is written


TEXTS = ["a red fox", "ein süßer Fuchs", "红色狐狸，在雪里。", "빨간 여우", "🦊❄️👩‍👩‍👧", "a\n\tb  ", "\ufffdx", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_together_the_answer(golden, text):
    tokenizer = OmniGen2Tokenizer(golden_tokenizer(golden))
    special = tokenizer.special
    ids = [*tokenizer.encode(text), special.im_end]
    ids[1:1] = [special.vision_start] * (len(ids) > 2 and text.isascii())
    stream = TextStream(tokenizer)
    pieces = [stream.update(ids[:length]) for length in range(1, len(ids) + 1)]
    assert "".join(pieces) == text == readable(tokenizer, ids)
    assert all(piece in text for piece in pieces)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_any_tokens_at_all_stream_to_what_is_read_at_the_end(golden):
    tokenizer = OmniGen2Tokenizer(golden_tokenizer(golden))
    for seed in range(30):
        ids = random.Random(seed).choices(range(1024), k=40)
        stream = TextStream(tokenizer)
        pieces = [stream.update(ids[:length]) for length in range(1, 41)]
        assert "".join(pieces) == readable(tokenizer, ids)
        assert not any(name in "".join(pieces) for name in SPECIAL_TOKENS.values())


def test_a_character_that_never_ends_is_left_out(golden):
    tokenizer = OmniGen2Tokenizer(golden_tokenizer(golden))
    ids = tokenizer.encode("雪狐")
    assert [readable(tokenizer, ids[:length]) for length in range(7)] == ["", "", "", "雪", "雪", "雪", "雪狐"]


def test_the_picture_token_is_hidden_under_any_name(golden):
    tokenizer = OmniGen2Tokenizer(golden_tokenizer(golden, SPECIAL_TOKENS | {"img": "<tool_response>"}))
    assert readable(tokenizer, [tokenizer.special.img, *tokenizer.encode("here")]) == "here"


# Cancelling


def test_cancelling_frees_the_cache_even_while_the_exception_is_kept(assistant):
    class Cancelled(Exception):
        pass

    def cancel(written):
        if len(written[0]) == 3:
            raise Cancelled

    def caches():
        gc.collect()
        return [thing for thing in gc.get_objects() if type(thing) is DynamicCache]

    ids = torch.tensor([assistant.tokenizer.encode("tell me")])
    arguments = (assistant.model, ids, torch.ones_like(ids))
    before = generate_tokens(*arguments, max_new_tokens=6, stop_ids=())
    with pytest.raises(Cancelled) as kept:
        generate_tokens(*arguments, max_new_tokens=6, stop_ids=(), on_token=cancel)
    assert kept.tb is not None and not caches()
    greedy = Sampler(GREEDY, (), arguments[2])
    assert generate_tokens(*arguments, max_new_tokens=6, stop_ids=(), sample=greedy) == before
