"""OmniGen2 Reflection Loop in a real server: rounds, no opinion, cancelling, going on by hand."""

import json
import shutil

import numpy as np
import pytest
from harness import Graph
from PIL import Image
from small_models import install_folder, write_encoder
from studio import (
    ASKED,
    ENCODE,
    KOREAN,
    LOOP,
    MISPLACED,
    NOTES,
    PROMPT,
    RIGHT,
    SAMPLE,
    WRONG,
    Studio,
    interrupted,
    picture_of,
    refusal,
    rounds,
    run_loop,
    told,
    values_of,
)
from transformers import DynamicCache


@pytest.fixture(scope="module")
def folder(server, golden):
    """A model whose pictures mean nothing; what it says of them is in a script."""
    return install_folder(server.models, golden)


# What comes out


def test_a_picture_that_is_right_at_once_is_drawn_once_and_by_the_sampler_of_the_other_nodes(server, folder):
    made, result, node = run_loop(server, folder, RIGHT, ASKED, 0.9)
    assert made["stop"] == "the picture is right" and made["best"] == 0
    assert values_of(made, "origin", "seed", "parent") == [("drawn", 7, None)]
    assert made["rounds"][0]["score"]["value"] == pytest.approx(0.9, abs=1e-4)
    assert made["rounds"][0]["settings"]["steps"] == 2 and set(made["rounds"][0]["seconds"]) == {"draw", "reflect", "verify"}

    studio = Studio(folder)
    encoded = studio.graph.add("OmniGen2Encode", clip=studio.clip, batch_size=1, **{name: LOOP[name] for name in ENCODE})
    conditionings = {"positive": encoded[0], "negative_ref": encoded[1], "negative": encoded[2], "latent": encoded[3]}
    settings = {name: LOOP[name] for name in SAMPLE}
    sampled = studio.graph.add("OmniGen2Sample", model=studio.model, denoise=1.0, **conditionings, **settings)
    decoded = studio.graph.add("VAEDecode", samples=sampled[0], vae=studio.vae)
    plain = studio.graph.add("TestSaveTensors", name="plain", image=decoded[0])
    image = server.tensors(server.run(studio.graph), plain)["image"][0].clamp(0, 1).numpy()
    drawn = np.asarray(picture_of(server, made["pictures"][0]))
    assert np.array_equal(drawn, np.round(image * 255).astype(np.uint8))


def test_outputs_are_the_best_picture_all_rounds_and_the_transcript(server, folder):
    studio = Studio(folder, WRONG, ASKED, 0.3, RIGHT, 0.9)
    node = studio.loop()
    best = studio.graph.add("TestSaveTensors", name="best", image=node[0])
    every = studio.graph.add("PreviewImage", images=node[1])
    text = studio.graph.add("PreviewAny", source=node[2])
    listed = studio.graph.add("PreviewAny", source=node[3])
    result = server.run(studio.graph)
    made = rounds(result, node)
    assert len(server.images(result, every)) == 2
    assert "Correction: Make the fox red" in result.ui[text]["text"][0]
    assert json.loads(result.ui[listed]["text"][0]) == made
    image = server.tensors(result, best)["image"][0].numpy()
    assert np.array_equal(np.asarray(picture_of(server, made["pictures"][1])), np.round(image * 255).astype(np.uint8))


def test_a_fault_is_corrected_by_an_edit_and_the_corrected_picture_goes_out(server, folder):
    made, result, node = run_loop(server, folder, WRONG, ASKED, 0.3, RIGHT, 0.9)
    assert values_of(made, "origin", "seed", "parent", "prompt", "helped") == [
        ("drawn", 7, None, PROMPT, None),
        ("edited", 8, 0, "Make the fox red", True),
    ]
    assert (made["best"], made["stop"]) == (1, "the picture is right")
    assert [entry["reflection"]["verdict"] for entry in made["rounds"]] == ["not satisfied", "satisfied"]


def test_the_page_is_told_of_every_stage_and_round_as_they_come(server, folder):
    made, result, node = run_loop(server, folder, WRONG, ASKED, 0.3, RIGHT, 0.9)
    events = told(result)
    assert all(event["node"] == node for event in events)
    assert [(event["stage"], event["round"]) for event in events[:5]] == [
        ("draw", 0), ("reflect", 0), ("verify", 0), ("", -1), ("draw", 1)
    ]  # fmt: skip
    assert [len(event["rounds"]["rounds"]) for event in events[:5]] == [0, 0, 0, 1, 1]
    assert events[-1]["rounds"] == made
    # All the files are there to be fetched.
    for name in made["pictures"]:
        subfolder, file = name.split("/")
        assert len(server.get_bytes("/view", filename=file, subfolder=subfolder, type="output")) > 100


def test_out_of_rounds(server, folder):
    made, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, MISPLACED, 0.5, WRONG, 0.4, WRONG, 0.7, WRONG, 0.6, rounds=2)
    assert values_of(made, "origin", "parent") == [
        ("drawn", None), ("edited", 0), ("drawn again", 0), ("drawn again", 1), ("edited", 1)
    ]  # fmt: skip
    assert (made["best"], made["stop"]) == (3, "all rounds were used")


def test_a_round_that_does_not_help_is_set_aside(server, folder):
    made, *_ = run_loop(server, folder, WRONG, ASKED, 0.5, RIGHT, 0.1, rounds=5, redraw="edit")
    assert (made["best"], made["stop"], len(made["rounds"])) == (0, "the last round did not help", 2)


def test_no_rounds_draw_and_judge_and_correct_nothing(server, folder):
    made, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0)
    assert len(made["rounds"]) == 1 and made["rounds"][0]["reflection"]["verdict"] == "not satisfied"


@pytest.mark.parametrize(("redraw", "origin"), [("edit", "edited"), ("draw again", "drawn again")])
def test_the_way_to_redraw_may_be_chosen(server, folder, redraw, origin):
    said = MISPLACED if redraw == "edit" else WRONG
    made, *_ = run_loop(server, folder, said, ASKED, 0.3, RIGHT, 0.9, redraw=redraw)
    assert made["rounds"][1]["origin"] == origin


def test_an_edit_has_the_size_of_the_picture_that_is_edited_whatever_the_limit_on_references(server, folder):
    script = (WRONG, ASKED, 0.3, RIGHT, 0.9)
    made, *_ = run_loop(server, folder, *script, redraw="edit", width=192, height=80, max_side=64, steps=1)
    assert values_of(made, "origin") == [("drawn",), ("edited",)]
    assert [picture_of(server, name).size for name in made["pictures"]] == [(192, 80)] * 2


def test_references_are_seen_and_drawn_with(server, folder):
    made, *_ = run_loop(server, folder, MISPLACED, ASKED, 0.3, RIGHT, 0.9, images=2)
    assert made["references"] == 2 and len(made["reference_marks"]) == 2
    assert made["rounds"][1]["origin"] == "drawn again"


# No opinion


@pytest.mark.parametrize(("answer", "reason"), [("", "it was empty"), (KOREAN, "not in English")])
def test_an_answer_that_cannot_be_used_is_asked_for_again_and_then_shown_as_no_opinion(server, folder, answer, reason):
    made, result, node = run_loop(server, folder, answer, answer, ASKED, 0.6)
    said = made["rounds"][0]["reflection"]
    assert (said["verdict"], said["answers"]) == ("no opinion", [answer, answer])
    assert reason in said["note"] and made["stop"] == "there was no usable reflection"
    assert any("no opinion" in note and reason in note for note in result.ui[node][NOTES])


@pytest.mark.parametrize("words", [KOREAN, "Le renard est bleu.\nPeignez le renard en rouge.", "qzx vlorp blee wjkt"])
@pytest.mark.parametrize("end", ["", "<|img|>"])
def test_a_trained_reflection_in_another_language_is_shown_as_no_opinion_and_not_followed(server, folder, words, end):
    made, result, node = run_loop(server, folder, words + end, ASKED, 0.6, reflect_by="trained")
    said = made["rounds"][0]["reflection"]
    assert (said["verdict"], said["answers"], said["correction"]) == ("no opinion", [words], "")
    assert made["stop"] == "there was no usable reflection" and values_of(made, "origin") == [("drawn",)]
    assert any("no opinion" in note and "not in English" in note for note in result.ui[node][NOTES])


def test_a_trained_reflection_that_announces_a_picture_is_followed(server, folder):
    said = "The fox is blue.\nMake the fox red<|img|>"
    made, *_ = run_loop(server, folder, said, ASKED, 0.3, "It is right.", 0.9, reflect_by="trained")
    assert values_of(made, "origin", "prompt") == [("drawn", PROMPT), ("edited", "Make the fox red")]


def test_trained_weights_end_their_turn_when_satisfied(server, folder):
    made, *_ = run_loop(server, folder, "It is right.", ASKED, 0.9, reflect_by="trained")
    assert made["stop"] == "the picture is right"


def test_auto_takes_the_form_that_the_weights_were_made_for(server, folder):
    trained = server.models / "diffusers" / "tests" / "trained"
    if not trained.is_dir():
        shutil.copytree(server.models / "diffusers" / folder, trained)
        profile = json.loads((trained / "omnigen2.json").read_text(encoding="utf-8"))
        (trained / "omnigen2.json").write_text(json.dumps({**profile, "trained_reflection": True}), encoding="utf-8")
    said = "It is right."
    made, *_ = run_loop(server, "tests/trained", said, ASKED, 0.9, reflect_by="auto")
    assert made["stop"] == "the picture is right"
    made, *_ = run_loop(server, folder, said, said, ASKED, 0.9, reflect_by="auto")
    assert made["stop"] == "there was no usable reflection"


@pytest.mark.parametrize("kind", ["loop", "best_of"])
def test_an_encoder_without_eyes_draws_and_has_no_opinion(server, folder, golden, kind):
    write_encoder(server.models / "text_encoders" / "blind.safetensors", golden, vision=False)
    studio = Studio(folder)
    studio.clip = studio.graph.add("OmniGen2LoadEncoder", text_encoder="blind.safetensors", dtype="auto")[0]
    node = getattr(studio, kind)()
    result = server.run(studio.graph)
    made = rounds(result, node)
    assert made["best"] == 0 and [entry["score"]["value"] for entry in made["rounds"]] == [None] * len(made["rounds"])
    assert any("blind.safetensors" in note for note in result.ui[node][NOTES])
    if kind == "loop":
        assert made["stop"] == "there was no usable reflection"


# Cancelling


def test_cancelling_in_the_middle_of_the_second_picture_keeps_the_first_and_leaves_the_next_run_unharmed(server, folder):
    studio = Studio(folder, WRONG, ASKED, 0.3, RIGHT, 0.9)
    studio.model = studio.graph.add("TestSlowModel", model=studio.model, seconds=0.2)[0]
    node = studio.loop(steps=20)
    drawing = []

    def second_picture(kind, data):
        if kind == "omnigen2.rounds" and (data["stage"], data["round"]) == ("draw", 1):
            drawing.append(True)
        return kind == "progress" and bool(drawing) and data["value"] >= 1

    result = interrupted(server, studio.graph, second_picture)
    left = told(result)[-1]["rounds"]
    assert (left["stop"], left["best"], len(left["rounds"])) == ("stopped before the end", 0, 1)
    assert picture_of(server, left["pictures"][0]).size == (64, 64)
    counting = Graph()
    alive = counting.add("TestCountAlive", names=DynamicCache.__name__)
    assert server.records(server.run(counting), alive) == {DynamicCache.__name__: 0}

    made, *_ = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=0, earlier_rounds=json.dumps(left), rounds=1)
    assert values_of(made, "origin", "parent") == [("drawn", None), ("edited", 0)]


def test_cancelling_while_the_model_looks_keeps_the_picture_that_it_looks_at_unjudged(server, folder):
    studio = Studio(folder)
    studio.clip = studio.graph.add("TestWrites", clip=studio.clip, text=WRONG, seconds=0.3)[0]
    node = studio.loop()
    result = interrupted(server, studio.graph, lambda kind, data: kind == "omnigen2.rounds" and data["stage"] == "reflect")
    left = told(result)[-1]["rounds"]
    assert len(left["rounds"]) == 1 and left["rounds"][0]["score"]["value"] is None
    assert picture_of(server, left["pictures"][0]).size == (64, 64)
    made, *_ = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=0, earlier_rounds=json.dumps(left))
    assert made["stop"] == "the picture is right" and made["pictures"] == left["pictures"]


def test_cancelling_between_pictures_keeps_those_that_are_drawn(server, folder):
    studio = Studio(folder, ASKED, 0.3, 0.9, 0.5)
    studio.model = studio.graph.add("TestSlowModel", model=studio.model, seconds=0.5)[0]
    node = studio.best_of()
    result = interrupted(server, studio.graph, lambda kind, data: kind == "omnigen2.rounds" and len(data["rounds"]["rounds"]) == 1)
    left = told(result)[-1]["rounds"]
    assert left["stop"] == "stopped before the end" and 1 <= len(left["rounds"]) == len(left["pictures"]) < 3


# Going on from a round picked by hand


def test_a_picked_round_is_gone_on_from(server, folder):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, MISPLACED, 0.5, rounds=1, redraw="edit")
    made, *_ = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=0, earlier_rounds=json.dumps(first), rounds=1)
    assert made["rounds"][:2] == first["rounds"] and made["pictures"][:2] == first["pictures"]
    assert values_of(made, "origin", "parent", "seed")[2] == ("edited", 0, 9)
    assert (made["picked"], made["best"]) == (0, 2)


def test_the_picked_round_goes_out_where_going_on_does_not_help(server, folder):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, MISPLACED, 0.5, rounds=1, redraw="edit")
    made, *_ = run_loop(server, folder, RIGHT, ASKED, 0.1, pick=0, earlier_rounds=json.dumps(first), rounds=1, redraw="edit")
    assert (made["best"], made["stop"]) == (0, "the last round did not help")


def test_a_picked_round_that_is_held_right_goes_out_as_it_is_and_the_node_says_so(server, folder):
    first, *_ = run_loop(server, folder, RIGHT, ASKED, 0.9)
    made, result, node = run_loop(server, folder, pick=0, earlier_rounds=json.dumps(first))
    assert made["pictures"] == first["pictures"] and made["stop"] == "the picture is right"
    assert "Round 0 is held right, so nothing was changed. Say in the prompt what it lacks" in result.ui[node][NOTES][0]


def test_a_round_whose_picture_is_gone_is_not_mistaken_for_one_that_is_drawn_later(server, folder):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0, seed=1)
    (server.output / first["pictures"][0]).unlink()
    run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0, seed=2)
    studio = Studio(folder)
    studio.loop(pick=0, earlier_rounds=json.dumps(first))
    assert "cannot be read (FileNotFoundError)" in refusal(server, studio)


def test_another_round_whose_picture_is_gone_is_left_out_and_the_node_says_so(server, folder):
    script = (WRONG, ASKED, 0.3, MISPLACED, 0.5, MISPLACED, 0.6)
    first, *_ = run_loop(server, folder, *script, rounds=2, redraw="edit")
    assert values_of(first, "parent") == [(None,), (0,), (1,)]
    (server.output / first["pictures"][1]).unlink()
    more = {"pick": 2, "earlier_rounds": json.dumps(first), "rounds": 1, "redraw": "edit"}
    made, result, node = run_loop(server, folder, RIGHT, ASKED, 0.9, **more)
    assert made["pictures"][:2] == first["pictures"][::2] and made["picked"] == 1
    assert made["rounds"][0] == first["rounds"][0]
    assert made["rounds"][1] == {**first["rounds"][2], "index": 1, "parent": None}
    assert values_of(made, "origin", "parent")[2:] == [("edited", 1)]
    assert "Earlier rounds whose pictures cannot be read were left out: 1, by their old numbers." in result.ui[node][NOTES]


def test_of_many_earlier_rounds_the_picked_one_with_what_led_to_it_and_the_newest_are_gone_on_with(server, folder):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0)
    [entry], [name] = first["rounds"], first["pictures"]
    entries = [{**entry, "index": i, "seed": i, "parent": {1: 0, 3: 1, 29: 28}.get(i)} for i in range(30)]
    earlier = json.dumps({**first, "rounds": entries, "pictures": [name] * 30})
    made, result, node = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=3, earlier_rounds=earlier, rounds=1)
    assert [seed for (seed,) in values_of(made, "seed")[:24]] == [0, 1, 3, *range(9, 30)]
    assert [parent for (parent,) in values_of(made, "parent")] == [None, 0, 1, *[None] * 20, 22, 2]
    assert made["picked"] == 2 and len(made["pictures"]) == 25
    assert result.ui[node][NOTES][0].startswith("Of 30 earlier rounds the run went on with 24, under new numbers: round 3")


@pytest.mark.parametrize(("change", "what"), [({"prompt": "a fox in a red coat"}, "prompt"), ({"images": 1}, "references")])
def test_for_another_task_the_picture_alone_is_taken_over_and_judged_anew(server, folder, change, what):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0)
    made, result, node = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=0, earlier_rounds=json.dumps(first), **change)
    assert values_of(made, "origin", "prompt", "seed") == [("given", PROMPT, 7)] and made["pictures"] == first["pictures"]
    assert made["rounds"][0]["score"]["value"] == pytest.approx(0.9, abs=1e-4)
    assert made["rounds"][0]["settings"] == {"judge": "model"}, "whose score it is tells a later run"
    assert any(f"The {what} changed since round 0" in note for note in result.ui[node][NOTES])


def test_with_another_judge_the_picture_alone_is_taken_over_too(server, folder):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0)
    first["rounds"][0]["settings"]["judge"] = "own_endpoint"
    made, result, node = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=0, earlier_rounds=json.dumps(first))
    assert values_of(made, "origin") == [("given",)] and made["rounds"][0]["score"]["value"] == pytest.approx(0.9, abs=1e-4)
    assert any("The judge changed since round 0" in note for note in result.ui[node][NOTES])


def transcript_of(name):
    """The JSON of a run of one round, whose picture is a file of this name."""
    entry = {
        "index": 0, "origin": "drawn", "prompt": PROMPT, "seed": 1, "parent": None, "helped": None, "reflection": None,
        "score": {"value": None, "checks": [], "note": ""}, "seconds": {}, "settings": {"judge": "model"},
    }  # fmt: skip
    head = {"format": "omnigen2.reflection", "version": 1, "instruction": PROMPT, "references": 0, "stop": None}
    return json.dumps({**head, "best": 0, "picked": None, "picked_at": 0, "rounds": [entry], "pictures": [name], "reference_marks": []})


@pytest.mark.parametrize(
    ("pick", "earlier", "message"),
    [
        (1, "", "Round 1 is picked, but earlier_rounds is empty"),
        (1, transcript_of("a/b.png"), "Round 1 is picked, but there are 1 earlier rounds"),
        (0, "nonsense", "earlier_rounds is no transcript"),
        (0, '{"pictures": [1]}', "earlier_rounds is no transcript"),
        (0, '{"pictures": {"a": 1}}', "earlier_rounds is no transcript"),
        (0, '{"pictures": ["a/b.png"]}', "is no reflection transcript of this version"),
        (0, transcript_of("omnigen2_rounds/gone.png"), "cannot be read (FileNotFoundError)"),
        (0, transcript_of("../input/secret.png"), "cannot be read (OSError)"),
        (0, transcript_of("/etc/passwd"), "cannot be read (FileNotFoundError)"),
    ],
)
def test_rounds_that_cannot_be_gone_on_from_are_refused_in_a_sentence(server, folder, pick, earlier, message):
    server.save_input("secret.png", Image.new("RGB", (64, 64)))
    studio = Studio(folder)
    studio.loop(pick=pick, earlier_rounds=earlier)
    assert message in refusal(server, studio)


# What is refused


@pytest.mark.parametrize(
    ("inputs", "message"),
    [({"prompt": " "}, "The instruction is empty"), ({"images": 6}, "6 reference images are connected")],
)
@pytest.mark.parametrize("kind", ["loop", "best_of"])
def test_what_cannot_be_drawn_is_refused_in_a_sentence(server, folder, kind, inputs, message):
    studio = Studio(folder)
    images = [studio.graph.add("EmptyImage", width=64, height=64, batch_size=inputs["images"], color=0)[0]] if "images" in inputs else []
    getattr(studio, kind)(images=images, **{name: value for name, value in inputs.items() if name != "images"})
    assert message in refusal(server, studio)
