"""OmniGen2 Best of N in a real server, and a judge of the user's own for both nodes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import harness
import pytest
from PIL import Image
from small_models import install_folder
from studio import ASKED, NOTES, RIGHT, Studio, picture_of, refusal, rounds, run_loop, told, values_of


@pytest.fixture(scope="module")
def folder(server, golden):
    """A model whose pictures mean nothing; what it says of them is in a script."""
    return install_folder(server.models, golden)


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
    assert result.ui[node][NOTES] == ["Picture 2: 1 of 1 questions got neither yes nor no."]


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
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answering(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.sent.append((self.headers["Authorization"], body))
        self.server.asked.set()
        self.server.answers.wait()
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


def test_cancelling_does_not_wait_for_an_endpoint_that_does_not_answer(judged_server, judge, golden):
    judge.answer, judge.sent = "yes", []
    judge.asked.clear()
    judge.answers.clear()
    studio = Studio(install_folder(judged_server.models, golden), RIGHT)
    studio.loop(judge="own_endpoint")
    threading.Thread(target=lambda: judge.asked.wait() and judged_server.interrupt(), daemon=True).start()
    try:
        result = judged_server.run(studio.graph, check=False)
        # It ended while the endpoint was still silent, and not by the endpoint's own limit, which is an error.
        assert result.status == "interrupted" and len(judge.sent) == 1
    finally:
        judge.answers.set()
    made, *_ = run_loop(judged_server, install_folder(judged_server.models, golden), RIGHT, judge="own_endpoint")
    assert made["rounds"][0]["score"]["value"] == 1.0


def test_an_endpoint_that_the_environment_does_not_name_is_refused(server, folder):
    for kind in ("loop", "best_of"):
        studio = Studio(folder)
        getattr(studio, kind)(judge="own_endpoint")
        assert "needs OMNIGEN2_JUDGE_URL, OMNIGEN2_JUDGE_MODEL, OMNIGEN2_JUDGE_KEY" in refusal(server, studio)
