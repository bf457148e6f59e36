"""OmniGen2 Reflection Loop and OmniGen2 Best of N in a real server: rounds, ranking, cancelling, going on by hand."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import harness
import numpy as np
import pytest
from harness import Graph, Result
from PIL import Image
from small_models import install_folder, write_encoder
from transformers import DynamicCache

NOTES = "omnigen2_notes"
ROUNDS = "omnigen2_rounds"
PROMPT = "a fox in the snow"
ASKED = "Is there a fox?"
RIGHT = "VERDICT: RIGHT\nPROBLEM: NONE\nKIND: NONE\nFIX: NONE"
WRONG = "VERDICT: WRONG\nPROBLEM: the fox is blue\nKIND: ATTRIBUTE\nFIX: Make the fox red"
MISPLACED = "VERDICT: WRONG\nPROBLEM: no second fox\nKIND: LAYOUT\nFIX: Draw two foxes"
KOREAN = "여우가 파란색입니다. 빨간색으로 바꾸세요."
SETTINGS = {
    "prompt": PROMPT, "negative_prompt": "", "width": 64, "height": 64, "match_reference": True, "seed": 7, "steps": 2,
    "solver": "euler", "text_guidance": 2.0, "image_guidance": 1.5, "guidance_start": 0.0, "guidance_end": 1.0,
    "shift": "auto", "max_pixels": 0, "max_side": 0, "encoder_sees_images": False, "judge": "model",
}  # fmt: skip
ENCODE = ("prompt", "negative_prompt", "width", "height", "match_reference", "max_pixels", "max_side", "encoder_sees_images")
SAMPLE = ("seed", "steps", "solver", "text_guidance", "image_guidance", "guidance_start", "guidance_end", "shift")
LOOP = {**SETTINGS, "rounds": 2, "redraw": "auto", "reflect_by": "prompted", "edit_text_guidance": 0.0, "edit_image_guidance": 0.0, "pick": -1,
        "earlier_rounds": ""}  # fmt: skip


@pytest.fixture(scope="module")
def folder(server, golden):
    """A model whose pictures mean nothing; what it says of them is in a script."""
    return install_folder(server.models, golden)


class Studio:
    """A graph with a loader and a scripted encoder, to which a node of this file is added."""

    def __init__(self, folder: str, *script: str | float):
        self.graph = Graph()
        self.model, self.clip, self.vae = (self.graph.add("OmniGen2LoadFolder", folder=folder, dtype="fp32")[i] for i in range(3))
        if script:
            self.clip = self.graph.add("TestReflects", clip=self.clip, script=json.dumps(script))[0]

    def picture(self, size: int = 64) -> list:
        return self.graph.add("EmptyImage", width=size, height=size, batch_size=1, color=0xFF8000)[0]

    def loop(self, images=(), **inputs) -> Graph.Node:
        return self._add("OmniGen2ReflectionLoop", images, {**LOOP, **inputs})

    def best_of(self, images=(), **inputs) -> Graph.Node:
        return self._add("OmniGen2BestOfN", images, {**SETTINGS, "count": 3, **inputs})

    def _add(self, kind: str, images, inputs: dict) -> Graph.Node:
        slots = {f"images.image_{i}": image for i, image in enumerate(images, start=1)}
        return self.graph.add(kind, model=self.model, clip=self.clip, vae=self.vae, **inputs, **slots)


def rounds(result: Result, node: Graph.Node) -> dict:
    """The rounds as a node reported them in the end."""
    return result.ui[node][ROUNDS][0]


def run_loop(server, folder, *script, images=0, **inputs) -> tuple[dict, Result, Graph.Node]:
    studio = Studio(folder, *script)
    node = studio.loop([studio.picture() for _ in range(images)], **inputs)
    result = server.run(studio.graph)
    return rounds(result, node), result, node


def told(result: Result) -> list[dict]:
    """What the page was told while the node ran."""
    return [data for kind, data in result.events if kind == "omnigen2.rounds"]


def picture_of(server, name: str) -> Image.Image:
    return Image.open(server.output / name).convert("RGB")


def values_of(made: dict, *keys: str) -> list:
    return [tuple(entry[key] for key in keys) for entry in made["rounds"]]


def refusal(server, studio: Studio) -> str:
    result = server.run(studio.graph, check=False)
    assert result.status == "error"
    assert "\n" not in result.error.strip()
    return result.error


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
    made, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, MISPLACED, 0.5, WRONG, 0.7)
    assert values_of(made, "origin") == [("drawn",), ("edited",), ("drawn again",)]
    assert (made["best"], made["stop"]) == (2, "all rounds were used")


def test_a_round_that_does_not_help_is_set_aside(server, folder):
    made, *_ = run_loop(server, folder, WRONG, ASKED, 0.5, RIGHT, 0.1, rounds=5)
    assert (made["best"], made["stop"], len(made["rounds"])) == (0, "the last round did not help", 2)


def test_no_rounds_draw_and_judge_and_correct_nothing(server, folder):
    made, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0)
    assert len(made["rounds"]) == 1 and made["rounds"][0]["reflection"]["verdict"] == "not satisfied"


@pytest.mark.parametrize(("redraw", "origin"), [("edit", "edited"), ("draw again", "drawn again")])
def test_the_way_to_redraw_may_be_chosen(server, folder, redraw, origin):
    said = MISPLACED if redraw == "edit" else WRONG
    made, *_ = run_loop(server, folder, said, ASKED, 0.3, RIGHT, 0.9, redraw=redraw)
    assert made["rounds"][1]["origin"] == origin


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


def interrupted(server, graph: Graph, when) -> Result:
    """Runs a graph and interrupts it at the first event of which `when(kind, data)` is true."""
    done = []

    def look(kind, data, result):
        if not done and when(kind, data):
            done.append(True)
            server.interrupt()

    result = server.run(graph, on_event=look, check=False)
    assert result.status == "interrupted"
    return result


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
    node = studio.best_of()
    result = interrupted(server, studio.graph, lambda kind, data: kind == "omnigen2.rounds" and len(data["rounds"]["rounds"]) == 1)
    left = told(result)[-1]["rounds"]
    assert left["stop"] == "stopped before the end" and 1 <= len(left["rounds"]) == len(left["pictures"]) < 3


# Going on from a round picked by hand


def test_a_picked_round_is_gone_on_from(server, folder):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, MISPLACED, 0.5, rounds=1)
    made, *_ = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=0, earlier_rounds=json.dumps(first), rounds=1)
    assert made["rounds"][:2] == first["rounds"] and made["pictures"][:2] == first["pictures"]
    assert values_of(made, "origin", "parent", "seed")[2] == ("edited", 0, 9)
    assert (made["picked"], made["best"]) == (0, 2)


def test_the_picked_round_goes_out_where_going_on_does_not_help(server, folder):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, MISPLACED, 0.5, rounds=1)
    made, *_ = run_loop(server, folder, RIGHT, ASKED, 0.1, pick=0, earlier_rounds=json.dumps(first), rounds=1)
    assert (made["best"], made["stop"]) == (0, "the last round did not help")


@pytest.mark.parametrize(("change", "what"), [({"prompt": "a fox in a red coat"}, "prompt"), ({"images": 1}, "references")])
def test_for_another_task_the_picture_alone_is_taken_over_and_judged_anew(server, folder, change, what):
    first, *_ = run_loop(server, folder, WRONG, ASKED, 0.3, rounds=0)
    made, result, node = run_loop(server, folder, RIGHT, ASKED, 0.9, pick=0, earlier_rounds=json.dumps(first), **change)
    assert values_of(made, "origin") == [("given",)] and made["pictures"] == first["pictures"]
    assert made["rounds"][0]["score"]["value"] == pytest.approx(0.9, abs=1e-4)
    assert any(f"The {what} changed since round 0" in note for note in result.ui[node][NOTES])


@pytest.mark.parametrize(
    ("pick", "earlier", "message"),
    [
        (1, "", "Round 1 is picked, but earlier_rounds is empty"),
        (1, '{"pictures": ["a/b.png"]}', "Round 1 is picked, but there are 1 earlier rounds"),
        (0, "nonsense", "earlier_rounds is no transcript"),
        (0, '{"pictures": [1]}', "earlier_rounds is no transcript"),
        (0, '{"pictures": ["omnigen2_rounds/gone.png"]}', "cannot be read (FileNotFoundError)"),
        (0, '{"pictures": ["../input/secret.png"]}', "cannot be read (OSError)"),
        (0, '{"pictures": ["/etc/passwd"]}', "cannot be read (FileNotFoundError)"),
    ],
)
def test_rounds_that_cannot_be_gone_on_from_are_refused_in_a_sentence(server, folder, pick, earlier, message):
    server.save_input("secret.png", Image.new("RGB", (64, 64)))
    studio = Studio(folder)
    studio.loop(pick=pick, earlier_rounds=earlier)
    assert message in refusal(server, studio)


# Best of N


def test_pictures_are_ranked_by_their_scores(server, folder):
    studio = Studio(folder, ASKED, 0.3, 0.9, 0.5)
    node = studio.best_of()
    ranked = studio.graph.add("PreviewImage", images=node[1])
    scores = studio.graph.add("PreviewAny", source=node[2])
    seeds = studio.graph.add("PreviewAny", source=node[3])
    best = studio.graph.add("PreviewImage", images=node[0])
    result = server.run(studio.graph)
    made = rounds(result, node)
    assert values_of(made, "seed") == [(7,), (8,), (9,)] and made["best"] == 1
    assert [float(text) for text in result.ui[scores]["text"]] == pytest.approx([0.9, 0.5, 0.3], abs=1e-4)
    assert result.ui[seeds]["text"] == ["8", "9", "7"]
    drawn = [picture_of(server, made["pictures"][i]).tobytes() for i in (1, 2, 0)]
    assert [image.tobytes() for image in server.images(result, ranked)] == drawn
    assert server.images(result, best)[0].tobytes() == drawn[0]


def test_a_picture_without_a_score_comes_last_and_says_so(server, folder):
    studio = Studio(folder, ASKED, 0.3, -1.0, 0.5)
    node = studio.best_of()
    scores = studio.graph.add("PreviewAny", source=node[2])
    result = server.run(studio.graph)
    assert [float(text) for text in result.ui[scores]["text"]] == pytest.approx([0.5, 0.3, -1.0], abs=1e-4)


def test_seeds_begin_again_after_the_last(server, folder):
    studio = Studio(folder, ASKED, 0.3, 0.4)
    node = studio.best_of(seed=2**64 - 1, count=2)
    assert values_of(rounds(server.run(studio.graph), node), "seed") == [(2**64 - 1,), (0,)]


# A judge of the user's own


class Judge(HTTPServer):
    """An endpoint that answers what it is told to, and keeps what it was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.status, self.answer, self.sent = 200, "", []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answering(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.sent.append((self.headers["Authorization"], body))
        asks_for_list = any(part.get("text", "").startswith("Here is an instruction") for part in body["messages"][0]["content"])
        content = ASKED if asks_for_list else self.server.answer
        data = json.dumps({"choices": [{"message": {"content": content}}]} if self.server.status == 200 else {"error": "no"})
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_):
        pass


KEY = "sk-secret-0123456789"


@pytest.fixture(scope="module")
def judge():
    running = Judge()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="module")
def judged_server(tmp_path_factory, judge):
    """A server whose environment names the judge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIGEN2_JUDGE_URL", f"http://127.0.0.1:{judge.server_port}/v1")
        patch.setenv("OMNIGEN2_JUDGE_MODEL", "my-model")
        patch.setenv("OMNIGEN2_JUDGE_KEY", KEY)
        with harness.Server(tmp_path_factory.mktemp("judged")) as running:
            yield running


def test_an_endpoint_scores_when_asked_to_and_nothing_of_it_is_kept(judged_server, judge, golden):
    folder = install_folder(judged_server.models, golden)
    judge.status, judge.answer, judge.sent = 200, "yes", []
    made, result, node = run_loop(judged_server, folder, RIGHT, judge="own_endpoint")
    assert made["rounds"][0]["score"]["checks"] == [{"question": ASKED, "probability": 1.0, "answer": "yes"}]
    assert [key for key, _ in judge.sent] == [f"Bearer {KEY}"] * 2
    for name in made["pictures"]:
        picture = Image.open(judged_server.output / name)
        assert picture.text and not any(KEY in text or "127.0.0.1" in text for text in picture.text.values())
    history = json.dumps(judged_server.get(f"/history/{result.prompt_id}"))
    assert KEY not in history and str(judge.server_port) not in history


def test_the_endpoint_is_off_unless_asked_for(judged_server, judge, golden):
    judge.sent = []
    run_loop(judged_server, install_folder(judged_server.models, golden), RIGHT, ASKED, 0.9)
    assert judge.sent == []


def test_an_endpoint_that_fails_is_named_in_a_sentence_and_keeps_what_is_drawn(judged_server, judge, golden):
    judge.status = 401
    studio = Studio(install_folder(judged_server.models, golden), RIGHT)
    studio.loop(judge="own_endpoint")
    result = judged_server.run(studio.graph, check=False)
    assert "refused the key in OMNIGEN2_JUDGE_KEY" in result.error and KEY not in result.error
    left = told(result)[-1]["rounds"]
    assert len(left["pictures"]) == 1 and left["stop"] == "stopped before the end"
    judge.status, judge.answer = 200, "yes"


def test_an_endpoint_that_the_environment_does_not_name_is_refused(server, folder):
    for kind in ("loop", "best_of"):
        studio = Studio(folder)
        getattr(studio, kind)(judge="own_endpoint")
        assert "needs OMNIGEN2_JUDGE_URL, OMNIGEN2_JUDGE_MODEL, OMNIGEN2_JUDGE_KEY" in refusal(server, studio)


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
