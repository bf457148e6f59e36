"""What the encoder learns to look by: rows that say the truth, and losses that reach what they should."""

import random

import pytest
import torch
from PIL import Image

from omnigen2_core.mllm import build_mllm
from omnigen2_core.nano import encoder, looking, seeing, train
from omnigen2_core.nano.drawn import Drawn
from omnigen2_core.nano.faults import RIGHT, draw_spoiled
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.judge import Cell, look_at_cells
from omnigen2_core.nano.questions import KINDS, ask_about
from omnigen2_core.nano.tokens import build_tokenizer
from omnigen2_core.nano.world import PLACES, Scene, Thing, draw_scene
from omnigen2_core.training import Workers
from omnigen2_core.vision import preprocess


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def parts(tokenizer):
    mix = looking.Mix(held=3, questions=4, told=2, decisions=8, reflections=16, verdicts=16)
    return {part.kind: part for part in looking.Examples(tokenizer, (), mix).batch(0, random.Random(4))}


def texts(tokenizer, part, learn):
    """What the rows of a part hold, learnt or given, with special tokens."""
    rows = []
    for ids, mask, learnt in zip(part.ids, part.mask, part.learn):
        chosen = mask.bool() & (learnt.bool() if learn else ~learnt.bool())
        rows.append(tokenizer.decode(ids[chosen].tolist(), skip_special_tokens=False))
    return rows


def test_a_view_has_one_class_for_each_visual_token():
    scene = Scene("red", (Thing(5, "blue", "ring", "small"),))
    rows = seeing.View.of_scene(scene).classes()
    assert len(rows) == 36 and {tuple(row) for row in rows} == {(0, 4, 5, 1), (0, 8, 6, 2)}
    # The right cell of the middle row: two by two of the six by six tokens.
    assert [i for i, row in enumerate(rows) if row[1] == 4] == [16, 17, 22, 23]


def test_reflections_are_right_or_name_a_correction_and_announce_a_picture(tokenizer, parts):
    written = texts(tokenizer, parts["reflection"], True)
    assert any(text == RIGHT + "<|im_end|>" for text in written)
    assert any(text.startswith("Wrong at ") and "\n" in text and "<|img|>" in text for text in written)
    assert all("<|img|>" in given for given in texts(tokenizer, parts["reflection"], False))


def test_cells_that_are_compared_are_wrong_exactly_in_wrong_pictures(tokenizer, parts):
    part = parts["reflection"]
    for text, compared in zip(texts(tokenizer, part, True), part.compared):
        ground_only = "background" in text and text.count(":") == 1
        assert (0 in compared.tolist()) == (text != RIGHT + "<|im_end|>" and not ground_only)


def test_verdicts_compare_one_token_for_each_thing(tokenizer, parts):
    part = parts["verdict"]
    assert {text.split("<|im_end|>")[0] for text in texts(tokenizer, part, True)} == {"yes", "no"}
    for text, compared in zip(texts(tokenizer, part, True), part.compared):
        marks = [mark for mark in compared.tolist() if mark >= 0]
        assert marks and set(marks) <= {2, 3}
        if text == "yes<|im_end|>":
            assert set(marks) == {3}


def test_wishes_are_answered_by_announcing_a_picture(tokenizer, parts):
    assert set(texts(tokenizer, parts["decision"], True)) == {"<|img|>"}


def test_the_hold_is_nothing_for_the_same_encoder_and_something_for_another(tokenizer, parts):
    config = encoder.config(tokenizer)
    model, teacher = (build_mllm(config, device="cpu", dtype=torch.float32) for _ in range(2))
    for one in (model, teacher):
        encoder.initialise(one)
    loss = looking.looking_loss(model, seeing.Eyes(), teacher)
    generator = torch.Generator()
    assert loss(parts["held"], generator)[1]["held_hold"] < 1e-9
    with torch.no_grad():
        model.model.layers[5].mlp.down_proj.weight.mul_(1.5)
    assert loss(parts["held"], generator)[1]["held_hold"] > 1e-4


def test_every_loss_reaches_what_it_should_teach(tokenizer, parts):
    config = encoder.config(tokenizer)
    model, teacher = (build_mllm(config, device="cpu", dtype=torch.float32) for _ in range(2))
    for one in (model, teacher):
        encoder.initialise(one)
    eyes = seeing.Eyes()
    loss = looking.looking_loss(model, eyes, teacher.requires_grad_(False))
    for part in parts.values():
        loss(part, torch.Generator())[0].backward()
    missed = [name for name, p in [*model.named_parameters(), *eyes.named_parameters()] if p.grad is None or not p.grad.any()]
    assert missed == []


@pytest.fixture(scope="module")
def patchwork():
    rng, drawn = random.Random(2), []
    for _ in range(60):
        wanted = draw_scene(rng, 4)
        view = seeing.View.of_spoiled(draw_spoiled(rng, wanted))
        drawn.append(Drawn("", wanted, view.pixels, view.ground, view.cells))
    return seeing.Patchwork(drawn)


def test_the_judge_sees_in_a_patchwork_what_it_says(patchwork):
    rng = random.Random(2)
    views = [patchwork.view(rng) for _ in range(40)]
    assert all(look_at_cells(view.pixels) == (view.ground, view.cells) for view in views)
    assert any(cell.doubt for view in views for cell in view.cells)
    drawn = [picture for pictures in patchwork.grounds.values() for picture in pictures]
    assert not any((view.pixels == picture.pixels).all() for view in views for picture in drawn)


def test_a_patchwork_for_a_scene_is_judged_right_where_it_shows_it_and_wrong_elsewhere(patchwork):
    rng, found = random.Random(3), []
    for _ in range(40):
        wanted, view = patchwork.judged(rng, 3)
        assert len({(t.colour, t.shape) for t in wanted.things}) == len(wanted.things) <= 4
        assert look_at_cells(view.pixels) == (view.ground, view.cells)
        faults = seeing.faults_of(wanted, view)
        seen = {cell.thing for cell in view.cells if cell.thing}
        assert bool(faults) == (seen != set(wanted.things) or any(cell.doubt for cell in view.cells))
        found.append(len(faults))
    assert 0 in found and max(found) > 1


def test_what_a_question_is_about_is_where_its_answer_is_found():
    rng, kinds = random.Random(5), {}
    for i in range(400):
        scene, kind = draw_scene(rng, 1 + i % 4), KINDS[i % len(KINDS)]
        asked = ask_about(rng, scene, kind)
        there = [t for t in scene.things if t.place == asked.place]
        kinds.setdefault(kind, []).append(asked.place)
        if kind == "where":
            assert PLACES[asked.place] == asked.answer and there[0].shape in asked.question
        elif asked.question.startswith(("What color is the b", "Which color")):
            assert asked.place is None
        elif asked.question.startswith(("What color", "Which shape")):
            assert asked.answer in (there[0].colour, there[0].shape)
        elif asked.answer == "yes":
            assert there and there[0].colour in asked.question
    assert set(kinds["caption"] + kinds["count"] + kinds["ground"]) == {None}
    assert None not in kinds["where"] + kinds["place"] and None in kinds["yes_no"]


def test_every_word_of_a_caption_looks_at_the_cell_that_it_tells_of(tokenizer):
    scene = Scene("red", (Thing(5, "blue", "ring", "small"), Thing(7, "black", "cross", "large")))
    view = seeing.View.of_scene(scene)
    row = looking.Examples(tokenizer, ())._talk(random.Random(8), scene, ["caption"], [view])
    told = {place: [row.ids[i + 1] for i, at in enumerate(row.pointed) if at == place] for place in (5, 7)}
    assert tokenizer.decode(told[5]) == "small blue ring at right" and tokenizer.decode(told[7]) == ", large black cross at bottom"
    assert set(row.pointed) == {-1, 5, 7}
    nothing = looking.Examples(tokenizer, ())._talk(random.Random(8), Scene("red", ()), ["caption"], [view])
    assert set(nothing.pointed) == {-1}


def test_the_opening_of_an_answer_learns_to_look_at_the_tokens_of_its_cell(tokenizer):
    examples, rng = looking.Examples(tokenizer, ()), random.Random(8)
    scene = Scene("red", (Thing(5, "blue", "ring", "small"),))
    row = examples._talk(rng, scene, ["where", "count"], [seeing.View.of_scene(scene)])
    [at] = [i for i, place in enumerate(row.pointed) if place >= 0]
    assert row.pointed[at] == 5 and row.learn[at : at + 2] == [False, True]
    assert set(examples._talk(rng, scene, ["where"], [seeing.View.of_scene(scene, (64, 64))]).pointed) == {-1}

    config = encoder.config(tokenizer)
    model, teacher = (build_mllm(config, device="cpu", dtype=torch.float32) for _ in range(2))
    for one in (model, teacher):
        encoder.initialise(one)
    eyes = seeing.Eyes()
    with torch.no_grad():
        # Heads that ask for nothing leave the looking to be learnt by itself.
        for parameter in eyes.parameters():
            parameter.zero_()
    loss, part = looking.looking_loss(model, eyes, teacher), examples._finish("answer", [row])
    attention = model.model.layers[looking.POINTED_IN].self_attn
    before = loss(part, torch.Generator())[1]["answer_pointed"]
    for _ in range(20):
        model.zero_grad()
        loss(part, torch.Generator())[0].backward()
        with torch.no_grad():
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight.sub_(0.01 * projection.weight.grad.sign())
    # The four tokens of a cell are a ninth of the picture's.
    assert before < 0.3 < 0.6 < loss(part, torch.Generator())[1]["answer_pointed"]


def test_nothing_is_asked_after_a_caption_and_yes_or_no_is_compared_as_it_is_answered(tokenizer):
    examples, rng, compared = looking.Examples(tokenizer, ()), random.Random(6), set()
    for _ in range(30):
        row = examples._asked(rng)
        answers = tokenizer.decode([i for i, learnt in zip(row.ids, row.learn) if learnt], skip_special_tokens=False).split("<|im_end|>")[:-1]
        captions = ["background" in answer for answer in answers]
        assert len(answers) == looking.Examples.QUESTIONS and captions == sorted(captions)
        told = [value == 3 for value in row.compared if value >= 2]
        assert told == [answer.strip() == "yes" for answer in answers if answer.strip() in ("yes", "no")]
        compared.update(told)
    assert compared == {True, False}


def small_tower(tokenizer, width, inner, heads):
    config = encoder.config(tokenizer)
    config["vision_config"] |= {"hidden_size": width, "intermediate_size": inner, "num_heads": heads}
    model = build_mllm(config, device="cpu", dtype=torch.float32)
    encoder.initialise(model)
    return model.requires_grad_(False)


def test_a_wider_tower_tells_what_the_narrow_one_did(tokenizer, patchwork, monkeypatch):
    narrow, wide = small_tower(tokenizer, 96, 256, 4), small_tower(tokenizer, 192, 512, 8)
    with torch.no_grad():
        for name, parameter in narrow.visual.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    rng = random.Random(7)
    values, grid = preprocess([Image.fromarray(patchwork.view(rng).pixels) for _ in range(3)], encoder.PIXELS)
    told, weights = narrow.look(values, grid), narrow.visual.state_dict()
    assert seeing.widened(weights, weights).keys() == weights.keys()

    def differs():
        wide.visual.load_state_dict(seeing.widened(weights, wide.visual.state_dict()))
        return ((wide.look(values, grid) - told).square().mean() / told.square().mean()).item()

    assert 1e-8 < differs() < 0.1
    monkeypatch.setattr(seeing, "NEW_CHANNELS", 0.0)
    assert differs() < 1e-10


def test_plain_tokens_are_those_of_the_clear_picture_and_one_for_all_that_is_not(tokenizer, patchwork):
    tower, rng = small_tower(tokenizer, 96, 256, 4), random.Random(3)
    unclear = [seeing.View(view.pixels, view.ground, (Cell(None, "?"),) * 9) for view in (patchwork.view(rng) for _ in range(3))]
    plain = seeing.Plain(tower, unclear)
    clear = seeing.View.of_scene(draw_scene(rng, 3))
    half = seeing.View(unclear[0].pixels, clear.ground, (Cell(None, "?"), *clear.cells[1:]))
    tokens, known = plain.tokens([clear, half, seeing.View(clear.pixels, None, clear.cells)])
    shown, first = tokens.view(3, 36, -1), torch.tensor([0, 1, 6, 7])
    assert torch.equal(shown[0], tower.look(*preprocess([Image.fromarray(clear.pixels)], encoder.PIXELS)))
    mean = tower.look(*preprocess([Image.fromarray(view.pixels) for view in unclear], encoder.PIXELS)).view(3, 36, -1).mean(0)
    assert torch.allclose(shown[1, first], mean[first], atol=1e-6)
    assert known.view(3, 36).all(1).tolist() == [True, True, False] and not known.view(3, 36)[2].any()


def test_a_tower_learns_to_say_what_is_plain(tokenizer, patchwork):
    model, tower = (small_tower(tokenizer, 96, 256, 4) for _ in range(2))
    unclear = [seeing.View(view.pixels, view.ground, (Cell(None, "?"),) * 9) for view in (patchwork.view(random.Random(i)) for i in range(3))]
    loss = seeing.seeing_loss(model, seeing.Eyes(), seeing.Plain(tower, unclear))
    clear = [seeing.View.of_scene(draw_scene(random.Random(i), 3)) for i in range(4)]

    def unlike(views):
        return loss(seeing.Sight(views), torch.Generator())[1]["unlike_plain"]

    assert unlike(clear) < 1e-6 < 0.01 < unlike(unclear)
    with torch.no_grad():
        model.visual.merger.mlp[2].bias.add_(1.0)
    assert unlike(clear) > 0.1
    assert unlike([seeing.View(view.pixels, None, view.cells) for view in clear]) == 0, "nothing is plain without a ground"
    half = loss(seeing.Sight(clear, 0.5), torch.Generator())[0]
    assert half.item() == pytest.approx(0.5 * loss(seeing.Sight(clear), torch.Generator())[0].item())


def test_several_processes_see_pictures_of_their_own(patchwork):
    drawn = [picture for pictures in patchwork.grounds.values() for picture in pictures]
    shares = [seeing.Sights(drawn, 6, rank, 2).batch(0, random.Random(1))[0] for rank in range(2)]
    assert [(len(sight.views), sight.share) for sight in shares] == [(3, 0.5)] * 2
    whole = seeing.Sights(drawn, 6).batch(0, random.Random(1))[0].views
    together = [view for pair in zip(*(sight.views for sight in shares)) for view in pair]
    assert all((a.pixels == b.pixels).all() for a, b in zip(whole, together))


def test_a_text_model_that_does_not_move_is_asked_for_words_alone(tokenizer, parts):
    model = small_tower(tokenizer, 96, 256, 4)
    model.visual.requires_grad_(True)
    loss = looking.looking_loss(model, seeing.Eyes(), model)
    for kind, asked in (("reflection", {"seeing", "reflection_loss"}), ("answer", {"seeing", "answer_loss"})):
        total, figures = loss(parts[kind], torch.Generator())
        assert asked <= figures.keys() and not [name for name in figures if name.endswith(("compared", "pointed")) or "placed" in name]
        total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.visual.parameters())
    assert all(p.grad is None for p in model.model.parameters())


def test_a_tower_that_does_not_move_is_not_asked_what_it_sees(tokenizer, parts):
    model = small_tower(tokenizer, 96, 256, 4)
    model.model.requires_grad_(True)
    loss = looking.looking_loss(model, seeing.Eyes(), model)
    total, figures = loss(parts["answer"], torch.Generator())
    assert {"answer_pointed", "answer_found", "placed_right", "answer_loss"} <= figures.keys() and "seeing" not in figures
    total.backward()
    assert all(p.grad is None for p in model.visual.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.model.layers.parameters())
    kinds = [part.kind for part in looking.Examples(tokenizer, (), looking.TEXT_MIX).batch(0, random.Random(1))]
    assert kinds == ["held", "decision", "answer", "reflection", "verdict"]


@pytest.mark.parametrize("moves", ["all", "eyes", "text"])
def test_what_look_moves_is_as_told(moves, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_own", lambda folder: ())
    trainer = train.train_look(tmp_path, looking.RECIPE, Workers(), WEIGHTS, moves=moves)
    parts = {name.split(".")[1] for name in trainer.parameters if name.startswith("mllm.")}
    assert parts == {"all": {"visual", "model"}, "eyes": {"visual"}, "text": {"model"}}[moves]


def test_what_was_found_is_learnt_as_a_place(tokenizer):
    """The opening of an answer holds the cell whose tokens it has looked at, after the same layer."""
    torch.manual_seed(0)
    examples, eyes = looking.Examples(tokenizer, ()), seeing.Eyes()
    scene = Scene("red", (Thing(5, "blue", "ring", "small"),))
    part = examples._finish("answer", [examples._talk(random.Random(8), scene, ["where"], [seeing.View.of_scene(scene)])])
    model = small_tower(tokenizer, 96, 256, 4)
    values = model.model.layers[looking.POINTED_IN].self_attn.v_proj.weight.requires_grad_(True)
    loss = looking.looking_loss(model, eyes, model)
    with torch.no_grad():
        eyes.found.bias.zero_()[3] = 5.0
    assert loss(part, torch.Generator())[1]["answer_found"] == 0
    for _ in range(20):
        model.zero_grad()
        loss(part, torch.Generator())[0].backward()
        with torch.no_grad():
            values.sub_(0.05 * values.grad.sign())
    assert loss(part, torch.Generator())[1]["answer_found"] == 1


def test_a_picture_may_come_twice_in_a_part(tokenizer):
    examples, model = looking.Examples(tokenizer, ()), small_tower(tokenizer, 96, 256, 4)
    view = seeing.View.of_scene(draw_scene(random.Random(3), 2))
    rows = [examples._talk(random.Random(5), draw_scene(random.Random(3), 2), ["colour"], [view]) for _ in range(2)]
    loss = looking.looking_loss(model, seeing.Eyes(), model)
    twice, once = (loss(examples._finish("answer", some), torch.Generator())[1] for some in (rows, rows[:1]))
    assert twice == pytest.approx(once, rel=1e-4)
