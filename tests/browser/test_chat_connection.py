"""A chat node whose page or whose server was away in the meantime."""

from __future__ import annotations

import json
from typing import Iterator

import harness
import pytest
from browser_harness import PATIENCE, Canvas
from chat_nodes import DRAW, EMPTY, Chat, add_chats, undo
from needed import need_comfyui
from PIL import Image
from playwright.sync_api import expect
from small_models import install_folder

GONE = "This picture is gone:"
OPEN = """async (path) => {
    const workflow = await app.extensionManager.workflow.getWorkflowByPath(path).load();
    await app.loadGraphData(workflow.activeState, true, true, workflow);
}"""
PATH = "app.extensionManager.workflow.activeWorkflow.path"


def test_a_chat_goes_on_on_the_same_page_after_the_server_was_restarted(browser, golden, tmp_path):
    need_comfyui()
    with harness.Server(tmp_path) as server:
        folder = install_folder(server.models, golden)
        canvas = Canvas(browser, server)
        canvas.reset()
        [chat] = add_chats(canvas, folder, DRAW)
        with canvas.no_pictures():
            assert chat.send("Draw a fox.") == "execution_success"
            expect(chat.log.get_by_text(GONE)).to_have_count(1, timeout=PATIENCE)
        with canvas.connecting():
            server.restart()
        chat.sees(64)
        chat.writes("It is red.")
        assert chat.send("Which colour?") == "execution_success"
        assert chat.texts[-2:] == ["Which colour?", "It is red."] and len(chat.turns) == 4
        chat.sees(64)
        canvas.close()


def test_a_picture_that_could_not_be_had_is_asked_for_whenever_the_page_is_connected_again(chats, canvas):
    [chat] = chats(DRAW)
    files = {name: canvas.server.output / "omnigen2_chat" / f"{name}.png" for name in ("first", "second", "third")}
    files["first"].parent.mkdir(exist_ok=True)
    files["second"].unlink(missing_ok=True)
    for width, name in ((32, "first"), (64, "third")):
        Image.new("RGB", (width, 32), "red").save(files[name])
    turn = {"role": "assistant", "text": "Three.", "images": [f"omnigen2_chat/{name}.png" for name in files]}
    with canvas.no_pictures():
        chat.set("history", json.dumps({"format": "omnigen2-conversation", "version": 1, "turns": [turn]}))
        expect(chat.log.get_by_text(GONE)).to_have_count(3, timeout=PATIENCE)
    with canvas.disconnected():
        pass
    chat.sees(32, 64)
    in_order = "(turn) => [...turn.children].slice(2).map(part => part.firstChild.alt ?? part.textContent)"
    first, second, third = (f"omnigen2_chat/{name}.png" for name in files)
    assert chat.log.locator("> div").evaluate(in_order) == [f"Picture {first}", f"{GONE} {second}", f"Picture {third}"]
    Image.new("RGB", (48, 32), "red").save(files["second"])
    with canvas.disconnected():
        pass
    chat.sees(32, 48, 64)
    assert chat.log.get_by_text(GONE).count() == 0


def test_an_answer_that_came_while_the_page_was_not_connected_is_added_when_it_is_again(chats, canvas):
    [chat] = chats("A fox.")
    with canvas.disconnected(at="omnigen2.chat"):
        chat.begin("What is it?")
        canvas.server.wait(chat.run)
        expect(chat.log).to_have_attribute("aria-busy", "true", timeout=PATIENCE)
        assert chat.texts == ["What is it?", ""] and chat.saved == []
    chat.is_answered()
    assert chat.texts == ["What is it?", "A fox."] and chat.field.input_value() == ""
    assert chat.status.inner_text() == ""
    chat.writes("Yes.")
    chat.send("Sure?")
    undo(canvas)
    assert chat.texts == ["What is it?", "A fox."] and chat.field.input_value() == "Sure?"
    assert canvas.errors == []


def test_an_answer_is_added_though_the_page_heard_nothing_of_its_run(chats, canvas):
    [chat] = chats("A fox.")
    with canvas.disconnected():
        with canvas.page.expect_response("**/prompt") as answered:
            chat.begin("What is it?")
        canvas.server.wait(answered.value.json()["prompt_id"])
    expect(chat.log.locator(":scope > *")).to_have_count(2, timeout=PATIENCE)
    assert chat.texts == ["What is it?", "A fox."] and chat.field.input_value() == ""
    assert canvas.errors == []


@pytest.fixture
def asked(open_canvas, folder) -> Iterator[Chat]:
    """A chat on a canvas of its own that was asked "What is it?" and writes "a fox", its end not before it is let go."""
    canvas = open_canvas()
    canvas.reset()
    [chat] = add_chats(canvas, folder, "A fox.")
    chat.writes("a fox", held=True)
    try:
        chat.begin("What is it?")
        expect(chat.status).to_have_text("Writing …", timeout=PATIENCE)
        yield chat
    finally:
        chat.let_go()


def let_go_while_loaded_anew(chat: Chat) -> None:
    run = chat.run
    with chat.canvas.loaded_anew():
        chat.let_go()
        chat.canvas.server.wait(run)


@pytest.mark.parametrize(("typed", "left"), [("What is it?", ""), ("And where?", "And where?")], ids=["what was sent", "the next message"])
def test_an_answer_that_came_while_the_page_was_loaded_anew_is_added_when_it_is_there(asked, typed, left):
    """Whatever is in the field."""
    asked.field.fill(typed)
    let_go_while_loaded_anew(asked)
    expect(asked.log.locator(":scope > *")).to_have_count(2, timeout=PATIENCE)
    assert asked.texts == ["What is it?", "a fox"] and asked.field.input_value() == left
    assert asked.canvas.errors == []


def test_an_answer_that_came_while_the_page_was_loaded_anew_is_not_added_to_a_copy_that_was_open(asked):
    canvas = asked.canvas
    own = canvas.evaluate(PATH)
    canvas.load(canvas.workflow())
    let_go_while_loaded_anew(asked)
    assert canvas.evaluate(PATH) != own
    canvas.page.wait_for_timeout(1000)
    assert asked.saved == [] and asked.field.input_value() == "What is it?"
    canvas.evaluate(OPEN, own)
    expect(asked.log.locator(":scope > *")).to_have_count(2, timeout=PATIENCE)
    assert asked.texts == ["What is it?", "a fox"] and asked.field.input_value() == ""
    assert canvas.errors == []


def test_the_history_is_asked_only_for_runs_that_have_left_the_queue(chats, canvas):
    [chat] = chats("A fox.")
    chat.begin_held("What is it?")
    canvas.evaluate("app.queuePrompt(0, 3)")
    requests = []

    def listen(request) -> None:
        requests.append(request.url)

    canvas.page.on("request", listen)
    try:
        with canvas.disconnected():
            pass
        canvas.page.wait_for_timeout(1000)
        assert any(url.endswith("/queue") for url in requests)
        assert [url for url in requests if "/history/" in url] == []
    finally:
        canvas.page.remove_listener("request", listen)
        canvas.server.post("/queue", {"clear": True})
        chat.let_go()
    assert chat.end() == "execution_success"
    assert chat.texts[0] == "What is it?" and len(chat.texts) == 2
    assert canvas.errors == []


def test_a_turn_that_ended_with_the_server_is_shown_no_longer_when_there_is_one_again(chats, canvas):
    [chat] = chats("A fox.")
    with canvas.disconnected(at="omnigen2.chat"):
        chat.begin("What is it?")
        canvas.server.forget(chat.run)
    expect(chat.status).to_contain_text("as it was", timeout=PATIENCE)
    assert chat.log.inner_text() == EMPTY and chat.field.input_value() == "What is it?"
    assert chat.send("What is it?") == "execution_success"
    assert chat.texts == ["What is it?", "A fox."]
    assert canvas.errors == []
