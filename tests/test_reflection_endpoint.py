"""The user's own judge over HTTP, against a real server on loopback: what is sent, what fails how, and where the key is not."""

import base64
import io
import json
import logging
import pickle
import socket
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from reflection_fakes import ScriptedDrawer, picture

from omnigen2_core.errors import JudgeError
from omnigen2_core.reflection.endpoint import (
    KEY_VARIABLE,
    MAX_BYTES,
    MODEL_VARIABLE,
    TIMEOUT_VARIABLE,
    Endpoint,
)
from omnigen2_core.reflection.loop import reflect
from omnigen2_core.reflection.prompted import PromptedReflector
from omnigen2_core.reflection.task import Task
from omnigen2_core.reflection.transcript import to_json, to_text
from omnigen2_core.reflection.verifier import QuestionVerifier

KEY = "sk-a-very-secret-key-0123456789"


def answer(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def cut_off(text):
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "length"}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers every request by `reply`: (status, headers, body), or a function of the handler that returns them or None.

    Keeps the requests.
    """

    daemon_threads = True

    def __init__(self):
        self.reply = (200, {}, answer("yes"))
        self.requests = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that hangs up is part of some tests."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        reply = self.server.reply(self) if callable(self.server.reply) else self.server.reply
        if reply is None:
            return
        status, headers, body = reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers), None))

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def ask(server, question="Is it red?", images=(), timeout=10.0):
    return Endpoint(server.url, "eyes", timeout).ask([question], [list(images)])[0]


def failure(server, **options):
    """The message of the error that asking ends in; nothing of it or of its trace may hold the key."""
    with pytest.raises(JudgeError) as caught:
        ask(server, **options)
    trace = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
    assert KEY not in trace and KEY not in repr(caught.value)
    message = str(caught.value)
    assert message.endswith((".", "?")) and "\n" not in message
    return message


# What is asked


def test_the_question_goes_out_with_its_pictures_and_the_words_come_back(server):
    server.reply = (200, {}, answer("Yes, it is."))
    assert ask(server, images=[Image.new("RGBA", (2048, 512), (255, 0, 0, 255))]) == "Yes, it is."
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "eyes" and body["temperature"] == 0
    image, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Is it red?"}
    sent = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))))
    assert sent.size == (1024, 256) and sent.getpixel((5, 5))[0] > 250


def test_metadata_of_a_picture_are_not_sent(server):
    image = picture(5)
    image.info["comment"] = b"my address"
    exif = Image.Exif()
    exif[0x010E] = "my address"
    image.info["exif"] = exif.tobytes()
    ask(server, images=[image])
    assert b"my address" not in base64.b64decode(
        server.requests[0][2]["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
    )


def test_a_whole_run_can_be_judged_by_it(server):
    def reply(handler):
        *_, question = handler.server.requests[-1][2]["messages"][0]["content"]
        forms = {"VERDICT": "VERDICT: RIGHT\nPROBLEM: NONE\nKIND: NONE\nFIX: NONE", "List what": "Is the circle red?"}
        return 200, {}, answer(next((said for part, said in forms.items() if part in question["text"]), f"Yes. {KEY}"))

    server.reply = reply
    endpoint = Endpoint(server.url, "eyes")
    looker = endpoint.looker()
    record = reflect(Task("a red circle"), ScriptedDrawer(5), PromptedReflector(looker.ask), QuestionVerifier(looker))
    assert record.best.score.value == 1.0
    for text in (to_json(record), to_text(record), repr(record.rounds), repr(looker), repr(endpoint)):
        assert KEY not in text
    assert KEY.encode() not in pickle.dumps(endpoint)


# Models that refuse settings

REFUSALS = {
    "max_tokens": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    },
    "temperature": {
        "message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "unsupported_value",
    },
}


def refuse(error):
    return 400, {}, json.dumps({"error": error}).encode()


def settings_of(request):
    """What a request has besides model and messages."""
    return {name: value for name, value in request[2].items() if name not in ("model", "messages")}


def refusing(server, refusals):
    """Lets the server answer only requests without the settings that are refused."""

    def reply(handler):
        sent = settings_of(handler.server.requests[-1])
        return next((refuse(error) for name, error in refusals.items() if name in sent), (200, {}, answer("yes")))

    server.reply = reply


FIRST = {"max_tokens": 512, "temperature": 0}


def test_a_reasoning_model_is_asked_in_its_own_way_and_that_is_remembered_for_the_run(server):
    refusing(server, REFUSALS)
    looker = Endpoint(server.url, "eyes").looker()
    assert looker.ask(["Is it red?", "Is it round?"], [[], []]) == ["yes", "yes"]
    assert looker.ask(["Is it big?"], [[]]) == ["yes"]
    renamed = {"max_completion_tokens": 4096}
    assert [settings_of(request) for request in server.requests] == [FIRST, {**renamed, "temperature": 0}, *[renamed] * 3]
    texts = [request[2]["messages"][0]["content"][-1]["text"] for request in server.requests]
    assert texts == ["Is it red?"] * 3 + ["Is it round?", "Is it big?"]
    refusing(server, {})
    Endpoint(server.url, "eyes").looker().ask(["Is it red?"], [[]])
    assert settings_of(server.requests[-1]) == FIRST, "another run begins anew"


@pytest.mark.parametrize(("name", "left"), [("max_tokens", "temperature"), ("temperature", "max_tokens")])
@pytest.mark.parametrize("part", ["message", "param"])
def test_only_the_setting_that_is_refused_is_changed(server, name, left, part):
    refusing(server, {name: {part: REFUSALS[name][part]}})
    assert ask(server) == "yes"
    assert [left in settings_of(request) for request in server.requests] == [True, True]
    assert name not in settings_of(server.requests[1])


@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_refuses_still_is_asked_no_third_time(server, name):
    error = {**REFUSALS[name], "message": f"bad {name} (not max_completion_tokens) for {KEY}"}
    server.reply = refuse(error)
    assert f"HTTP 400: bad {name} (not max_completion_tokens) for [key]" in failure(server)
    assert len(server.requests) == 2


def test_a_failure_for_another_reason_is_not_asked_again(server):
    server.reply = refuse({"message": "no such model; see max_completion_tokens", "param": "model"})
    assert "HTTP 400: no such model" in failure(server)
    status, headers, body = refuse(REFUSALS["max_tokens"])
    server.reply = (500, headers, body)
    assert "HTTP 500: Unsupported parameter" in failure(server)
    assert len(server.requests) == 2


def test_a_judge_that_says_nothing_has_no_answer_and_fails_nothing(server):
    server.reply = (200, {}, answer(None))
    looker = Endpoint(server.url, "eyes").looker()
    score = QuestionVerifier(looker, lambda task: ["Is it red?"]).examiner(Task("a red circle")).score(picture(5))
    assert score.value is None and "1 of 1 questions got neither yes nor no" in score.note


@pytest.mark.parametrize("thoughts", [None, "", "<think>Is it red? Let me", "Is it red? Let me"])
def test_thoughts_that_leave_no_room_for_an_answer_get_more(server, thoughts):
    def reply(handler):
        short = settings_of(handler.server.requests[-1])["max_tokens"] == 512
        opened = "" if thoughts == "Is it red? Let me" else "<think>"
        return (200, {}, cut_off(thoughts)) if short else (200, {}, answer(f"{opened}It is\nred.</think>\n\nYes."))

    server.reply = reply
    assert Endpoint(server.url, "eyes").looker().ask(["Is it red?", "Is it round?"], [[], []]) == ["Yes."] * 2
    assert [settings_of(request)["max_tokens"] for request in server.requests] == [512, 4096, 4096]


def test_thoughts_without_an_end_are_not_waited_for_again_and_again(server):
    server.reply = (200, {}, cut_off("<think>Is it red?"))
    assert ask(server) == "" and len(server.requests) == 2


# What goes wrong


def test_without_a_key_nothing_is_sent(server, monkeypatch):
    for value in ("", "  "):
        monkeypatch.setenv(KEY_VARIABLE, value)
        assert KEY_VARIABLE in failure(server)
    monkeypatch.delenv(KEY_VARIABLE)
    assert "needs a key" in failure(server)
    assert server.requests == []


@pytest.mark.parametrize("broken", [KEY + "\nX-Other: 1", KEY + "ü", KEY + "\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(server, monkeypatch, broken):
    monkeypatch.setenv(KEY_VARIABLE, broken)
    assert "characters that no key has" in failure(server)
    assert server.requests == []


@pytest.mark.parametrize(("status", "advice"), [(401, "check the key"), (403, f"may use the model in {MODEL_VARIABLE}")])
def test_a_refusal_says_why_and_names_the_variable(server, status, advice):
    server.reply = (status, {}, json.dumps({"error": {"message": f"not with {KEY}"}}).encode())
    message = failure(server)
    assert f"HTTP {status}: not with [key]" in message and KEY_VARIABLE in message and advice in message


def test_what_a_server_says_of_its_failure_is_passed_on_in_one_line_without_the_key(server):
    server.reply = (404, {}, json.dumps({"error": {"message": f"no model 'eyes'\nfor {KEY} " + "x" * 999}}).encode())
    message = failure(server)
    assert "HTTP 404: no model 'eyes' for [key] x" in message and len(message) < 400


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": null}', b'{"error": {"code": 1}}', b""])
def test_a_failure_without_an_explanation_is_still_one_sentence(server, body):
    server.reply = (500, {}, body)
    assert "HTTP 500" in failure(server)


@pytest.mark.parametrize("rest", [b"Transfer-Encoding: chunked\r\n\r\n100\r\n{", b"\r\n" + b"[" * 100_000], ids=["cut off", "deep"])
def test_a_failure_that_cannot_be_read_is_one_sentence_too(server, rest):
    server.reply = lambda handler: handler.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\n" + rest)
    assert "HTTP 502" in failure(server)


def busy(server, times, **headers):
    """Lets the server take no more requests so many times."""
    server.reply = lambda handler: (
        (429, headers, json.dumps({"error": {"message": "slow down"}}).encode())
        if len(server.requests) <= times
        else (200, {}, answer("yes"))
    )


def test_a_server_that_is_busy_is_asked_again_as_it_says(server, monkeypatch):
    waited = []
    monkeypatch.setattr("omnigen2_core.reflection.endpoint.time.sleep", waited.append)
    busy(server, 3, **{"Retry-After": "7"})
    assert ask(server) == "yes" and waited == [7, 7, 7]
    busy(server, 5, **{"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    assert ask(server) == "yes" and waited[3:] == [2]
    busy(server, 7, **{"Retry-After": "86400"})
    assert ask(server) == "yes" and waited[4:] == [30], "nobody waits for a day"


def test_who_has_left_asks_a_busy_server_no_more(server):
    busy(server, 99)
    looker = Endpoint(server.url, "eyes").looker(pause=lambda seconds: False)
    with pytest.raises(JudgeError, match="takes no more requests"):
        looker.ask(["Is it red?"], [[]])
    assert len(server.requests) == 1


def test_a_server_that_stays_busy_ends_the_run_and_says_why(server, monkeypatch):
    monkeypatch.setattr("omnigen2_core.reflection.endpoint.WAITS", (0.0, 0.0))
    busy(server, 99)
    assert "takes no more requests (HTTP 429: slow down)" in failure(server) and len(server.requests) == 3


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_so_that_the_key_goes_nowhere_else(server, status):
    with Server() as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        server.reply = (status, {"Location": other.url + "/chat/completions"}, b"")
        assert "redirects (HTTP" in failure(server)
        other.shutdown()
        assert other.requests == []


def test_nobody_listening():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(JudgeError, match="127.0.0.1 cannot be reached .*is it running"):
        Endpoint(f"http://127.0.0.1:{port}", "eyes").ask(["?"], [[]])


def test_a_server_that_says_nothing(server):
    server.reply = lambda handler: time.sleep(30)
    message = failure(server, timeout=0.3)
    assert "did not answer within 0.3 seconds" in message and TIMEOUT_VARIABLE in message


def test_a_server_that_goes_on_and_on_drop_by_drop(server):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    server.reply = drip
    start = time.monotonic()
    assert "did not answer within 0.3 seconds" in failure(server, timeout=0.3)
    assert time.monotonic() - start < 30


def test_a_connection_that_breaks(server):
    server.reply = lambda handler: handler.wfile.write(b"nonsense\r\n\r\n")
    assert "broke the connection" in failure(server)
    server.reply = (200, {"Content-Length": "1000"}, answer("yes"))
    assert ask(server) == "yes", "a whole answer under a wrong length is an answer"


MALFORMED = {
    "no json": b"yes",
    "not utf-8": b"\xff\xfe\xfa",
    "nothing": b"",
    "no choices": b"{}",
    "empty choices": b'{"choices": []}',
    "choices of another kind": b'{"choices": {"0": 1}}',
    "no content": b'{"choices": [{"message": {}}]}',
    "content that is no text": b'{"choices": [{"message": {"content": 1}}]}',
    "a choice that is a list": b'{"choices": [[]]}',
    "deeper than can be read": b"[" * 100_000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_answer(server, body):
    server.reply = (200, {}, body)
    assert "is malformed" in failure(server)


def test_an_endless_answer_is_cut_off(server):
    sent = []

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(64):
            handler.wfile.write(b" " * MAX_BYTES)
            sent.append(MAX_BYTES)

    server.reply = endless
    assert "is malformed" in failure(server)
    assert len(sent) < 32, "the connection was closed long before the end"


# What stays secret


def test_nothing_is_logged(server, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    ask(server)
    server.reply = (500, {}, b"")
    failure(server)
    out, err = capfd.readouterr()
    assert KEY not in caplog.text + out + err


def test_an_answer_that_repeats_the_key_is_shown_without_it(server):
    server.reply = (200, {}, answer(f"Your key is {KEY}."))
    assert ask(server) == "Your key is [key]."


def test_a_word_in_place_of_a_key_does_not_spoil_the_answers(server, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "no")
    server.reply = (200, {}, answer("no"))
    assert ask(server) == "no"


def test_the_own_network_is_asked_without_a_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(server) == "yes"
