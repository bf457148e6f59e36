"""The built-in model as it is shipped: its folder, its parts, and a few pictures; and the program that scores it."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from omnigen2_core.images import from_pixels
from omnigen2_core.nano import score
from omnigen2_core.nano.autoencoder import to_tensor
from omnigen2_core.nano.drawing import CONFIG, Examples, Mix
from omnigen2_core.nano.encoder import Examples as ReadingExamples
from omnigen2_core.nano.encoder import question_prompt
from omnigen2_core.nano.folder import PROFILE, WEIGHTS
from omnigen2_core.nano.judge import look
from omnigen2_core.nano.questions import KINDS, ask
from omnigen2_core.nano.tokens import SPECIAL_TOKENS, build_tokenizer
from omnigen2_core.nano.world import Scene, Thing, draw_scene, render
from omnigen2_core.prompts import DEFAULT_NEGATIVE_PROMPT, chat_prompt, generation_prompt



@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def pipeline():
    from omnigen2_core.pipeline import OmniGen2Pipeline

    return OmniGen2Pipeline.from_folder(WEIGHTS)


@pytest.mark.parametrize("text", ["A big red circle in the middle, 红色圆形", "grüße 😀 \n\t x² (word:1.2) [a]", "", "<|im_start|>"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_the_tokenizer_has_qwens_special_tokens_as_single_ids(tokenizer):
    for token in SPECIAL_TOKENS:
        assert tokenizer.encode(token, add_special_tokens=False).ids == [tokenizer.token_to_id(token)]


def test_the_template_costs_few_tokens(tokenizer):
    assert len(tokenizer.encode(generation_prompt(""), add_special_tokens=False).ids) <= 12
    assert len(tokenizer.encode(generation_prompt(DEFAULT_NEGATIVE_PROMPT), add_special_tokens=False).ids) <= 13


def test_question_prompts_are_the_chat_template_with_room_for_pictures(tokenizer):
    ids = question_prompt("What is this?", tokenizer, [3, 2])
    pad = tokenizer.token_to_id("<|image_pad|>")
    assert ids.count(pad) == 5
    text = tokenizer.decode(ids, skip_special_tokens=False).replace("<|image_pad|>" * 3, "<|image_pad|>").replace("<|image_pad|>" * 2, "<|image_pad|>")
    assert text == chat_prompt("What is this?", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_questions_have_the_answer_that_the_scene_gives(kind):
    scene = Scene("blue", (Thing(0, "red", "circle", "small"), Thing(8, "white", "ring", "large")))
    for seed in range(60):
        question, answer = ask(random.Random(seed), scene, kind)
        if kind == "count":
            assert answer == "two"
        elif kind == "ground":
            assert answer == "blue"
        elif kind == "where":
            assert answer == ("top left" if "circle" in question else "bottom right")
        elif kind == "colour":
            assert answer == ("red" if "circle" in question else "white")
        elif kind == "shape":
            assert answer == ("circle" if "red" in question else "ring")
        elif kind == "place":
            assert answer in ("small red circle", "large white ring", "nothing")
        elif kind == "yes_no":
            assert answer in ("yes", "no")
        else:
            assert answer == "small red circle at top left, large white ring at bottom right; blue background"


def test_the_steps_of_training_cover_all_tasks_without_padding(tokenizer):
    examples = Examples(tokenizer, Mix(6, 4, 2))
    examples.ROWS = {"text_to_image": 300, "edit": 200, "composition": 200}
    for step in range(5):
        parts = examples.batch(step, random.Random(step))
        assert [(p.kind, len(p.rows)) for p in parts] == [("text_to_image", 6), ("edit", 4), ("composition", 2)]
        assert sum(p.share for p in parts) == pytest.approx(1)
        for part in parts:
            assert len({len(row.ids) for row in part.rows}) == len({len(row.references) for row in part.rows}) == 1


def test_workers_share_a_batch_without_overlap(tokenizer):
    def rows(rank, workers):
        examples = Examples(tokenizer, Mix(6, 4, 2), rank=rank, workers=workers)
        examples.ROWS = {"text_to_image": 100, "edit": 100, "composition": 100}
        return [p.rows for p in examples.batch(0, random.Random(0))]

    for whole, first, second in zip(rows(0, 1), rows(0, 2), rows(1, 2)):
        assert whole[0::2] == first and whole[1::2] == second


def test_only_answers_are_learnt(tokenizer):
    part = ReadingExamples(tokenizer)._answer(random.Random(0))
    for ids, learn in zip(part.ids, part.learn):
        learnt = tokenizer.decode(ids[learn.bool()].tolist(), skip_special_tokens=False)
        assert learnt.endswith("<|im_end|>") and "<|im_start|>" not in learnt


def test_the_interval_is_wilsons():
    low, high = score.wilson(95, 100)
    assert (low, high) == (pytest.approx(0.888, abs=1e-3), pytest.approx(0.978, abs=1e-3))
    assert score.wilson(0, 0) == (0.0, 1.0)


class Perfect:
    """Stands in for the pipeline: draws what it is told by looking up the task."""

    profile = PROFILE

    def __init__(self, spoil=lambda picture: picture):
        self.answers, self.spoil = {}, spoil

    def generate(self, prompts, *, references, seeds, size, **settings):
        return [self.spoil(Image.fromarray(render(self.answers[prompt], *size))) for prompt in prompts]


@pytest.mark.parametrize("kind", score.TASKS)
def test_a_perfect_model_scores_full_and_a_blind_one_nothing(kind):
    tasks = score.draw_tasks(kind, 3, 10)
    perfect, blind = Perfect(), Perfect(lambda picture: Image.new("RGB", picture.size, (120, 200, 190)))
    perfect.answers = blind.answers = {task.prompt: task.wanted for task in tasks}
    assert all(o.right and o.kept for o in score.solve(perfect, tasks, 0))
    assert not any(o.right or o.kept for o in score.solve(blind, tasks, 0))


def test_an_edit_that_does_nothing_is_kept_but_not_right():
    tasks = [t for t in score.draw_tasks("edit", 5, 60) if t.references[0].ground == t.wanted.ground]
    idle = Perfect()
    idle.answers = {task.prompt: task.references[0] for task in tasks}
    outcomes = [score.judge_task(task, 0, Image.fromarray(render(task.references[0]))) for task in tasks]
    assert all(o.kept and not o.right for o in outcomes)


def test_tasks_follow_from_the_seed_alone():
    assert score.draw_tasks("edit", 1, 5) == score.draw_tasks("edit", 1, 9)[:5] != score.draw_tasks("edit", 2, 5)


def test_kept_pictures_can_be_judged_again(tmp_path):
    tasks = score.draw_tasks("in_context", 1, 3)
    perfect = Perfect()
    perfect.answers = {task.prompt: task.wanted for task in tasks}
    score.save_outcomes(tmp_path, "in_context", score.solve(perfect, tasks, 0))
    rows = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(len(row["references"]) == 2 for row in rows)
    for row, task in zip(rows, tasks):
        assert look(np.asarray(Image.open(tmp_path / row["picture"]))).scene == task.wanted


def test_the_shipped_folder_is_small_and_complete():
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 24_000_000
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    assert {p.name for p in WEIGHTS.iterdir()} == {"transformer", "vae", "mllm", "processor", "scheduler", "omnigen2.json"}
    assert json.loads((WEIGHTS / "omnigen2.json").read_text())["shift_base"] == PROFILE.shift_base
    assert json.loads((WEIGHTS / "transformer" / "config.json").read_text())["hidden_size"] == CONFIG.hidden_size


@torch.no_grad()
def test_the_shipped_autoencoder_gives_the_worlds_pictures_back(pipeline):
    rng = random.Random(11)
    scenes = [draw_scene(rng, 1 + i % 3) for i in range(60)]
    vae = pipeline.vae
    latents = vae.scale_latents(vae.encode(to_tensor(render(s) for s in scenes)).mean)
    assert latents.std() == pytest.approx(1, abs=0.15) and latents.mean().abs() < 0.15
    pictures = from_pixels(vae.decode(vae.unscale_latents(latents)))
    assert sum(look(np.asarray(p)).scene == s for p, s in zip(pictures, scenes)) >= 57


def test_the_shipped_model_draws_and_leaves_alone_what_it_edits(pipeline):
    figures = score.score(pipeline, 21, 12, kinds=("t2i_1", "edit"))
    assert figures["t2i_1"]["rate"] >= 0.75 and figures["edit_preserved"]["rate"] >= 0.5
