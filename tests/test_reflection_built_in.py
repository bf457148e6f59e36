"""Reflection on the built-in model itself: its likelihoods of yes and no, and whole runs drawn and judged by it.

What the model knows is not the matter here, but that everything comes from it, unchanged, and nothing is made up.
"""

import json
import math
import random

import pytest
import torch
from PIL import Image

from omnigen2_core.assistant import Assistant
from omnigen2_core.errors import CheckpointError, PromptError
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.tokens import build_tokenizer
from omnigen2_core.nano.world import draw_scene, render
from omnigen2_core.prompts import OmniGen2Tokenizer, chat_prompt
from omnigen2_core.reflection import (
    PromptedReflector,
    QuestionVerifier,
    Record,
    Stop,
    Task,
    Verdict,
    best_of,
    model_looker,
    reflect,
    to_dict,
)
from omnigen2_core.reflection.bench import Stage
from omnigen2_core.vision import PixelConfig
from omnigen2_core.yes_no import YesNo, ask_yes_no, yes_no_ids

QUESTIONS = ["Is there a red circle?", "Is there a red circle in the upper left corner?", "Is there a small blue ring?"]


@pytest.fixture(scope="module")
def pipeline():
    from omnigen2_core.pipeline import OmniGen2Pipeline

    return OmniGen2Pipeline.from_folder(WEIGHTS, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def assistant(pipeline):
    processor = json.loads((WEIGHTS / "processor" / "preprocessor_config.json").read_text())
    return Assistant(pipeline.encoder, pipeline.tokenizer, PixelConfig.from_dict(processor))


@pytest.fixture(scope="module")
def drawer(pipeline):
    def draw(prompt, references, seed):
        return pipeline.generate(prompt, references=[list(references)], seeds=seed, steps=3, size=(64, 64))[0]

    return draw


@pytest.fixture(scope="module")
def verifier(assistant):
    return QuestionVerifier(model_looker(assistant), lambda task: QUESTIONS, form="{question}", pairwise=False)


def picture(seed, things=2):
    return Image.fromarray(render(draw_scene(random.Random(seed), things)))


# Yes against no


def test_a_probability_is_that_of_yes_among_the_two_and_the_mass_that_of_both():
    sure = YesNo(math.log(0.6), math.log(0.2))
    assert sure.probability == pytest.approx(0.75) and sure.mass == pytest.approx(0.8)
    assert YesNo(-1000.0, 0.0).probability == pytest.approx(0.0) and YesNo(0.0, -1000.0).probability == 1.0
    assert YesNo(-math.inf, -1.0).probability == pytest.approx(0.0)


def test_tokens_of_yes_and_no_are_whole_words_and_never_shared():
    tokenizer = OmniGen2Tokenizer(build_tokenizer())
    yes, no = yes_no_ids(tokenizer)
    assert {tokenizer.decode([token]).strip().lower() for token in yes} == {"yes"}
    assert {tokenizer.decode([token]).strip().lower() for token in no} == {"no"}


def test_a_tokenizer_of_letters_compares_first_letters():
    class Letters:
        def encode(self, text):
            return [ord(letter) for letter in text]

    assert yes_no_ids(Letters()) == (sorted(map(ord, "yY")), sorted(map(ord, "nN")))


def test_a_tokenizer_that_cannot_tell_them_apart_is_refused():
    class Same:
        def encode(self, text):
            return [1, 2]

    with pytest.raises(CheckpointError, match="same token"):
        yes_no_ids(Same())


def test_the_likelier_word_is_the_one_the_model_would_write(assistant):
    images = [[picture(seed)] for seed in range(12)]
    questions = [QUESTIONS[seed % 3] for seed in range(12)]
    written = assistant.write([chat_prompt(question, 1) for question in questions], images, max_new_tokens=1)
    chances = ask_yes_no(assistant, questions, images)
    assert [answer.text.strip().lower() for answer in written] == [
        "yes" if chance.probability > 0.5 else "no" for chance in chances
    ]
    assert len({round(chance.probability, 4) for chance in chances}) > 6, "it looks at the pictures"


def test_a_question_of_another_kind_has_almost_no_mass_on_yes_and_no(assistant):
    image = picture(1)
    other, own = ask_yes_no(assistant, ["What color is the background?", QUESTIONS[0]], [[image], [image]])
    assert other.mass < 0.05 and own.mass > 0.95


def test_in_a_batch_every_question_gets_what_it_gets_alone(assistant):
    questions = [QUESTIONS[0], QUESTIONS[1], "Is there anything?", QUESTIONS[2], QUESTIONS[0]]
    images = [[picture(1)], [picture(2)], [], [picture(3), picture(4)], [picture(5, 3)]]
    together = ask_yes_no(assistant, questions, images, batch=5)
    alone = ask_yes_no(assistant, questions, images, batch=1)
    for a, b in zip(together, alone, strict=True):
        assert a.log_yes == pytest.approx(b.log_yes, abs=1e-3) and a.log_no == pytest.approx(b.log_no, abs=1e-3)


def test_a_placeholder_in_a_question_is_refused(assistant):
    with pytest.raises(PromptError, match="image"):
        ask_yes_no(assistant, ["<|image_pad|>?"], [[picture(1)]])


# Whole runs


def test_a_reflection_that_the_model_was_never_taught_is_no_opinion_and_shows_its_words(assistant, drawer, verifier):
    reflector = PromptedReflector(model_looker(assistant).ask)
    record = reflect(Task("a red circle on a white background"), drawer, reflector, verifier, rounds=3, seed=4)
    assert record.stop is Stop.NO_OPINION and len(record.rounds) == 1
    said = record.best.reflection
    assert said.verdict is Verdict.NO_OPINION and len(said.answers) == 2 and any(said.answers)


def test_a_run_is_drawn_and_judged_by_the_model_and_repeats_exactly(assistant, drawer, verifier):
    def run():
        record = Record(Task("a red circle on a white background"))
        reflector = PromptedReflector(model_looker(assistant).ask)
        return reflect(record, drawer, reflector, verifier, rounds=1, seed=4, correction="Make the circle blue.")

    record, again = run(), run()
    assert [entry.origin.value for entry in record.rounds] == ["drawn", "edited"]
    for one, other in zip(record.rounds, again.rounds, strict=True):
        assert one.picture.tobytes() == other.picture.tobytes() and one.score == other.score
    first, second = (entry.picture for entry in record.rounds)
    assert first.tobytes() != second.tobytes()
    alone = ask_yes_no(assistant, QUESTIONS, [[first]] * 3)
    asked = [check.probability for check in record.rounds[0].score.checks]
    assert asked == pytest.approx([chance.probability for chance in alone], abs=1e-4)
    better = record.rounds[1].score.value > record.rounds[0].score.value
    assert record.best_index == int(better)


def test_best_of_three_of_the_model_is_ranked_by_its_own_scores(drawer, verifier):
    record = best_of(Task("a red circle"), drawer, verifier, [1, 2, 3])
    values = [entry.score.value for entry in record.ranked()]
    assert values == sorted(values, reverse=True) and len(set(values)) == 3
    json.dumps(to_dict(record))


class Cancelled(Exception):
    pass


def test_cancel_in_the_middle_of_the_words_keeps_the_picture(assistant, drawer, verifier):
    def stop(step):
        raise Cancelled

    record = Record(Task("a red circle"))
    reflector = PromptedReflector(model_looker(assistant, on_step=stop).ask)
    with pytest.raises(Cancelled):
        reflect(record, drawer, reflector, verifier, rounds=1)
    assert len(record.rounds) == 1 and not record.best.judged and record.stop is Stop.INTERRUPTED


def test_cancel_between_two_passes_of_yes_and_no(assistant):
    begun = []

    def stop(step):
        begun.append(step)
        if len(begun) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        model_looker(assistant, batch=1, on_step=stop).yes_no(QUESTIONS, [[picture(1)]] * 3)
    assert begun == [0, 0]


def test_cancel_in_the_middle_of_the_second_picture_keeps_the_first(pipeline, assistant, verifier):
    steps = []

    def step(index, estimate, latents):
        steps.append(index)
        if len(steps) == 5:
            raise Cancelled

    def draw(prompt, references, seed):
        shown = [list(references)]
        return pipeline.generate(prompt, references=shown, seeds=seed, steps=3, size=(64, 64), callback=step)[0]

    record, stages = Record(Task("a red circle")), []
    reflector = PromptedReflector(model_looker(assistant).ask)
    with pytest.raises(Cancelled):
        reflect(
            record, draw, reflector, verifier, rounds=2, correction="Make it blue",
            on_stage=lambda stage, index: stages.append((stage, index)),
        )  # fmt: skip
    assert stages[-1] == (Stage.DRAW, 1) and steps == [0, 1, 2, 0, 1]
    assert len(record.rounds) == 1 and record.best.judged
