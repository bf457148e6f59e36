"""The search over ways of saving work: its candidates, what is drawn when, that it goes on where it was, and its tables."""

import json
import shutil
import time
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from omnigen2_core.acceleration.presets import PRESETS, Acceleration
from omnigen2_core.acceleration.protocol import Work
from omnigen2_core.checkpoints import ModelFolder
from omnigen2_core.errors import OmniGen2Error
from omnigen2_core.nano import presets, search
from omnigen2_core.nano.candidates import ALONE, PLAIN, TOGETHER, name_of, of_preset, parse
from omnigen2_core.nano.curves import Panel
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.own_tasks import OwnTasks
from omnigen2_core.nano.problems import FIRST, SECOND, Scenes
from omnigen2_core.nano.results import Batch, Header, Results
from omnigen2_core.nano.score import draw_tasks
from omnigen2_core.nano.search import Stage
from omnigen2_core.nano.trade_off import cell, markdown, overall, table
from omnigen2_core.nano.trade_off_figure import draw_figure
from omnigen2_core.nano.world import render
from omnigen2_core.profile import ModelProfile
from omnigen2_core.yes_no import YesNo

HEADER = Header("OmniGen2-nano", "0123", 2.0, 1.5, 0.8, 3)
SMALL = Scenes("small", (96, 96), {"t2i_1": 0, "edit": 1}, batch=2)


# Candidates


def test_a_candidate_is_a_preset_or_settings_over_the_plain_path():
    assert parse("turbo") == of_preset(PRESETS["turbo"])
    assert parse("exact") == PLAIN
    candidate = parse("steps=16,solver=dpmpp_2m,guidance_end=0.5,context_refresh=4,first_block=0.1")
    assert (candidate.steps, candidate.solver, candidate.guidance_end) == (16, "dpmpp_2m", 0.5)
    assert candidate.acceleration == Acceleration(context_refresh=4, first_block=0.1)
    assert candidate.without_methods() == parse("steps=16,solver=dpmpp_2m,guidance_end=0.5")


def test_a_candidate_s_text_makes_it_again():
    for text in ("steps=50", "steps=8,shift=0.6,taylorseer=2", "steps=50,guidance_end=0.3", *TOGETHER):
        assert str(parse(text)) == text
    for preset in PRESETS.values():
        assert parse(str(of_preset(preset))) == of_preset(preset)
    assert name_of(PLAIN) == "exact = steps=50" and name_of(parse("steps=7")) == "steps=7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=2", "'speed' is no preset and no setting"),
        ("steps=many", "steps is 'many'; give a number"),
        ("steps=0", "at least 1 step"),
        ("solver=heun", "no solver named 'heun'"),
        ("guidance_end=1.5", "guidance range"),
        ("teacache=0.1,taylorseer=3", "only one of them can be on"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_drawn(text, message):
    with pytest.raises(OmniGen2Error, match=message):
        parse(text)


def test_each_method_is_tried_alone_against_the_plain_path():
    alone = [parse(text) for settings in ALONE.values() for text in settings]
    assert len(set(alone)) == len(alone) and PLAIN not in alone
    for name in vars(Acceleration()):
        assert any(getattr(candidate.acceleration, name) != getattr(Acceleration(), name) for candidate in alone), name


def test_the_whole_search_has_the_plain_path_and_the_presets_in_both_worlds_and_their_steps_alone():
    stages = presets.stages(96)
    for world in (FIRST, SECOND):
        drawn = {candidate for stage in stages if stage.world == world for candidate in stage.candidates}
        assert {PLAIN, *map(of_preset, PRESETS.values())} <= drawn
    first = {candidate for stage in stages if stage.world == FIRST for candidate in stage.candidates}
    assert {of_preset(preset).without_methods() for preset in PRESETS.values()} <= first
    assert {stage.world.name for stage in stages} == {FIRST.name, SECOND.name}
    assert set(FIRST.kinds.values()) == {0, 1, 3} and set(SECOND.kinds.values()) == {0, 1, 2}


# Problems


def test_scenes_of_a_world_are_those_of_the_score_whatever_part_of_them_is_drawn():
    tasks = draw_tasks("in_context_3", 5, 6)
    assert all(len(task.references) == 3 and len(task.wanted.things) == 3 for task in tasks)
    problems = FIRST.draw(None, "in_context_3", 5, 4, 2)
    assert [problem.prompt for problem in problems] == [task.prompt for task in tasks[4:]]
    assert [problem.seed for problem in problems] == [500_019, 500_020]
    right = [Image.fromarray(render(task.wanted, 96, 96)) for task in tasks[4:]]
    assert [problem.is_right(picture) for problem, picture in zip(problems, right)] == [True, True]
    assert not problems[0].is_right(right[1])


def test_the_second_world_has_one_thing_more():
    for kind, things in {"t2i_3": 3, "edit_3": 3, "in_context": 2}.items():
        for task in draw_tasks(kind, 5, 30):
            before = task.references[0] if kind == "edit_3" else task.wanted
            assert len(before.things) == things and len(task.wanted.things) <= 3
            assert len(task.references) == SECOND.kinds[kind]


def test_own_tasks_are_sorted_by_their_references(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"prompt": "a cat"}, {"prompt": "make it blue", "references": ["a.png"]}, {"prompt": "a dog"}]))
    tasks = OwnTasks(file)
    assert tasks.kinds == {"0 references": 0, "1 reference": 1}
    assert tasks.available("0 references", 5) == 2 and tasks.available("1 reference", 5) == 1


def test_own_tasks_with_other_prompts_or_references_are_another_world(tmp_path):
    picture, file = tmp_path / "a.png", tmp_path / "tasks.json"

    def name(prompt: str, colour: str) -> str:
        Image.new("RGB", (40, 30), colour).save(picture)
        file.write_text(json.dumps([{"prompt": prompt, "references": ["a.png"]}]))
        return OwnTasks(file).name

    names = [name("a cat", "red"), name("a dog", "red"), name("a cat", "blue")]
    assert len(set(names)) == 3 and name("a cat", "red") == names[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "cannot be read as JSON"),
        ("[]", "has no list of tasks"),
        ('[{"prompt": "a"}, {"prompt": " "}]', "Task 2 of .* has no prompt"),
        ('[{"prompt": "a", "references": ["b.png"]}]', "refers to .*b.png, which is not there"),
    ],
)
def test_a_file_of_tasks_that_is_not_one_is_refused(tmp_path, text, message):
    file = tmp_path / "tasks.json"
    file.write_text(text)
    with pytest.raises(OmniGen2Error, match=message):
        OwnTasks(file).kinds


def test_own_tasks_are_judged_by_the_encoder_that_sees_references_and_picture(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"prompt": "make it blue", "references": ["a.png"]}]))
    asked = []

    def ask(assistant, questions, images, **_):
        asked.append((questions, images))
        return [YesNo(-0.1, -3.0) if images[0][-1].getpixel((0, 0)) == (0, 0, 255) else YesNo(-3.0, -0.1)]

    # The package exports a function of the module's name.
    monkeypatch.setattr(import_module("omnigen2_core.reflection.model_looker"), "ask_yes_no", ask)
    problem, = OwnTasks(file).draw(SimpleNamespace(assistant=lambda: None), "1 reference", 3, 0, 1)
    assert problem.is_right(Image.new("RGB", (40, 30), "blue")) and not problem.is_right(Image.new("RGB", (40, 30), "red"))
    (question,), ((reference, picture),) = asked[0]
    assert "make it blue" in question and reference.size == picture.size == (40, 30)


def test_another_model_needs_tasks_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Header, "of", lambda folder, seed: replace(HEADER, model="OmniGen2"))
    assert presets.main(["--results", str(tmp_path / "r.jsonl")]) == 1
    assert "give --tasks" in capsys.readouterr().err


# Drawing, and going on


class FakePipeline:
    """Draws a grey that tells how many steps were asked for, and records what a run of that many would."""

    def __init__(self, transformer=None, vae=None, encoder=None, tokenizer=None, profile=ModelProfile(name="fake", guidance_end=0.8), pixels=None):
        self.transformer = self.vae = self.encoder = self.tokenizer = self.pixels = None
        self.profile = profile
        self.asked: list[dict] = [] if transformer is None else transformer

    def generate(self, prompts, *, steps, make_run, size, **settings):
        run = make_run(steps)
        run.record += [Work(step, "cond", "full", 6, True) for step in range(steps)]
        self.asked.append({"prompts": prompts, "steps": steps, "shift_base": self.profile.shift_base, **settings})
        return [Image.new("RGB", size, (steps, steps, steps)) for _ in prompts]


@pytest.fixture
def pipeline(monkeypatch):
    made = FakePipeline()
    made.transformer = made.asked
    monkeypatch.setattr(search, "load_pipeline", lambda model: made)
    monkeypatch.setattr(search, "OmniGen2Pipeline", FakePipeline)
    return made


def test_a_search_draws_the_plain_path_first_and_nothing_twice(tmp_path, pipeline):
    results = Results(tmp_path / "r.jsonl", HEADER)
    stage = Stage(SMALL, (parse("steps=8"), PLAIN), 3)
    assert search.search(results, [stage, replace(stage, count=4)], WEIGHTS)
    assert [asked["steps"] for asked in pipeline.asked] == [50] * 4 + [8] * 4
    again = Results(tmp_path / "r.jsonl", HEADER)
    assert search.search(again, [stage], WEIGHTS) and len(pipeline.asked) == 8
    assert search.search(again, [replace(stage, count=6)], WEIGHTS) and len(pipeline.asked) == 12
    assert [batch.start for batch in again.batches("steps=8", "small", "edit")] == [0, 2, 4]


def test_a_batch_keeps_what_was_right_computed_and_different(tmp_path, pipeline, monkeypatch):
    monkeypatch.setattr(Scenes, "draw", lambda self, pipeline, kind, seed, start, count: [
        SimpleNamespace(prompt="x", references=(), seed=i, is_right=lambda picture, i=i: i % 2 == 0) for i in range(start, start + count)
    ])  # fmt: skip
    results = Results(tmp_path / "r.jsonl", HEADER)
    search.search(results, [Stage(SMALL, (PLAIN, parse("steps=45,shift=0.5")), 2)], WEIGHTS)
    plain, = results.batches("steps=50", "small", "edit")
    assert (plain.right, plain.psnr, plain.references, plain.pattern) == ("10", (), 1, {"cond": "F" * 50})
    fewer, = results.batches("steps=45,shift=0.5", "small", "edit")
    assert fewer.psnr == (34.2, 34.2) and fewer.pattern == {"cond": "F" * 45}
    assert pipeline.asked[-1]["shift_base"] == 2 * pipeline.profile.shift_base
    assert pipeline.asked[-1]["guidance"].range == (0.0, 0.8)


def test_a_search_ends_when_its_time_is_up_and_says_so(tmp_path, pipeline):
    results = Results(tmp_path / "r.jsonl", HEADER)
    stages = [Stage(SMALL, (PLAIN,), 2)]
    assert not search.search(results, stages, WEIGHTS, until=time.monotonic() - 1)
    assert pipeline.asked == []
    assert search.search(results, stages, WEIGHTS)


def test_a_line_that_was_not_finished_is_dropped_and_drawn_again(tmp_path, pipeline):
    results = Results(tmp_path / "r.jsonl", HEADER)
    search.search(results, [Stage(SMALL, (PLAIN,), 2)], WEIGHTS)
    text = results.path.read_text()
    results.path.write_text(text[:-20])
    again = Results(results.path, HEADER)
    assert again.batches("steps=50", "small", "t2i_1") and not again.batches("steps=50", "small", "edit")
    search.search(again, [Stage(SMALL, (PLAIN,), 2)], WEIGHTS)
    assert len(results.path.read_text().splitlines()) == len(text.splitlines())


def test_results_of_other_weights_or_problems_are_not_mixed(tmp_path):
    Results(tmp_path / "r.jsonl", HEADER)
    with pytest.raises(OmniGen2Error, match="another weights and seed; give another file"):
        Results(tmp_path / "r.jsonl", replace(HEADER, weights="4567", seed=4))
    (tmp_path / "s.jsonl").write_text("nothing\n")
    with pytest.raises(OmniGen2Error, match="no file of results"):
        Results(tmp_path / "s.jsonl", HEADER)


@pytest.mark.parametrize(("part", "tensor", "differs"), [
    ("transformer/diffusion_pytorch_model", "layers.3.attn.to_q.weight", True),
    ("vae/diffusion_pytorch_model", "decoder.conv_in.bias", True),
    ("mllm/model", "model.layers.2.mlp.up_proj.weight", True),
    ("mllm/model", "visual.merger.mlp.0.bias", False),
])  # fmt: skip
def test_the_header_tells_weights_apart_that_drawing_depends_on(tmp_path, part, tensor, differs):
    header = Header.of(ModelFolder(WEIGHTS), 3)
    assert header.model == "OmniGen2-nano" and header.guidance_end == 0.8
    assert header == Header.of(ModelFolder(WEIGHTS), 3)
    shutil.copytree(WEIGHTS, tmp_path / WEIGHTS.name)
    weights = load_file(tmp_path / WEIGHTS.name / f"{part}.safetensors")
    [name] = [name for name in weights if name.endswith(tensor)]
    weights[name] = weights[name] + 1
    save_file(weights, tmp_path / WEIGHTS.name / f"{part}.safetensors")
    assert (header != Header.of(ModelFolder(tmp_path / WEIGHTS.name), 3)) == differs


# Tables and figure


@pytest.fixture
def results(tmp_path):
    """Three kinds of 8 problems: the plain path right in all but one, turbo in all but two."""
    found = Results(tmp_path / "r.jsonl", HEADER)
    for world, (small, large) in {"few things": ("t2i_2", "edit"), "crowded": ("t2i_3", "edit")}.items():
        for kind, references in ((small, 0), (large, 1), ("in_context_3", 3)):
            for candidate, right in ((PLAIN, "11111110"), (of_preset(PRESETS["turbo"]), "11111010"), (parse("steps=8"), "00000000")):
                row = {"cond": "F" * candidate.steps, "uncond": "F" * candidate.steps}
                psnr = () if candidate == PLAIN else (20.0,) * 8
                found.add(Batch(str(candidate), world, kind, references, 0, right, psnr, row, 16.0))
    return found


def test_a_cell_has_score_speed_and_the_change_on_the_same_problems(results):
    one = cell(results, str(of_preset(PRESETS["turbo"])), "few things", "t2i_2")
    steps = PRESETS["turbo"].steps
    assert one.right["rate"] == 0.75 and one.change["rate"] == -0.125 and one.psnr == 20 and one.seconds == 2
    # Here the last fifth was guided too, in the plain path of the model it is not. What branches share is done once a step.
    assert one.speed == pytest.approx((41 + 50) / (2 * steps), rel=0.01)
    assert one.steps == pytest.approx((41 + 50) / (steps + sum(step / steps <= 0.8 for step in range(steps))), rel=0.01)
    assert cell(results, "steps=9", "few things", "t2i_2") is None
    right, change = overall(results, "steps=8", "crowded")
    assert (right["rate"], right["n"], change["rate"]) == (0, 24, -0.875)


def test_tables_have_a_line_for_each_candidate(results):
    text = table(results, "few things")
    assert len(text.splitlines()) == 2 + 3
    assert "exact = steps=50" in text and "87.5%" in text and "-12.5" in text
    rows = markdown(results, "crowded").splitlines()
    assert len(rows) == 2 + 9 and {row.count("|") for row in rows} == {12}


def test_the_figure_shows_every_preset_that_was_drawn(results):
    svg = draw_figure(results)
    assert svg.startswith("<svg") and svg.count(">turbo</text>") == 3 and svg.count(">exact</text>") == 3
    assert svg.count("<polygon") == 6 and "rings: on crowded" in svg and "TaylorSeer: 2, 4" in svg


def test_what_drew_fewer_problems_stands_at_its_change_in_the_figure(results, monkeypatch):
    row = {"cond": "F" * 50, "uncond": "F" * 50}
    results.add(Batch(str(PLAIN), "few things", "t2i_2", 0, 8, "00000000", (), row, 16.0))
    results.add(Batch("steps=16", "few things", "t2i_2", 0, 0, "11111110", (20.0,) * 8, row, 16.0))
    lines = []
    monkeypatch.setattr(Panel, "line", lambda self, speeds, shares, colour: lines.append(shares) or [])
    draw_figure(results)
    # As many right as the plain path on these eight; of all sixteen the plain path has seven.
    assert 7 / 16 in lines[0] and 7 / 8 not in lines[0]


def test_the_command_reports_what_is_known_without_drawing(results, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Header, "of", lambda folder, seed: HEADER)
    monkeypatch.setattr(search, "draw_batch", None)
    made = ["--figure", str(tmp_path / "f.svg"), "--table", str(tmp_path / "t.md")]
    assert presets.main(["--results", str(results.path), "--report", *made]) == 0
    assert "exact: 87.5 % of 24 right, +0.0 points" in capsys.readouterr().out
    assert (tmp_path / "t.md").read_text().count("### ") == 2 and (tmp_path / "f.svg").exists()
