"""How a chat waits for its answer, and finds it, while messages, other runs and other workflows come between."""

from __future__ import annotations

import json

from browser_harness import PATIENCE
from chat_nodes import undo
from playwright.sync_api import expect

LEAVE = "() => { window.own = app.extensionManager.workflow.activeWorkflow }"
COME_BACK = "async () => { await app.loadGraphData(window.own.activeState, true, true, window.own) }"
CHANGE = """(id) => {
    const node = app.graph.getNodeById(id), tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    tracker.captureCanvasState();
    node.properties.changed = true;
    tracker.captureCanvasState();
    window.before = node;
}"""
STORAGE_IS_FULL = """(full) => {
    window.setItem ??= Storage.prototype.setItem;
    Storage.prototype.setItem = !full ? window.setItem : function (key, value) {
        if (key.startsWith('omnigen2')) throw new DOMException('full', 'QuotaExceededError');
        window.setItem.call(this, key, value);
    };
}"""


def test_a_message_waits_until_the_one_before_is_answered(chats, canvas):
    [chat] = chats("A fox.")
    chat.begin_held("What is it?")
    chat.field.fill("And where?")
    chat.field.press("Enter")
    assert chat.status.inner_text() == "The last message is not answered yet."
    chat.let_go()
    canvas.page.wait_for_function("window.chatEnd")
    expect(chat.log.locator(":scope > *")).to_have_count(2, timeout=PATIENCE)
    assert chat.texts[0] == "What is it?" and chat.field.input_value() == "And where?" and chat.status.inner_text() == ""
    assert canvas.server.get("/queue")["queue_pending"] == []


def test_of_two_messages_that_were_queued_together_the_first_is_answered_and_the_second_says_why_not(chats, canvas):
    """By the button that runs the workflow, which a chat does not hold back."""
    [chat] = chats("A fox.")
    chat.begin_held("What is it?")
    chat.field.fill("And where?")
    canvas.evaluate("app.queuePrompt(0, 1)")
    chat.let_go()
    canvas.page.wait_for_function("document.querySelector('[data-omnigen2-chat] [role=status]').textContent.includes('changed since')")
    assert chat.texts[0] == "What is it?" and len(chat.texts) == 2 and chat.field.input_value() == "And where?"


def test_the_next_message_can_be_typed_while_the_server_has_not_taken_the_last(chats, canvas):
    [chat] = chats("A fox.")
    sent = []
    canvas.page.route("**/prompt", lambda request: sent.append(request))
    try:
        with canvas.page.expect_request("**/prompt"):
            chat.begin("What is it?")
        chat.field.fill("And where?")
        chat.field.press("Enter")
        assert chat.status.inner_text() == "The last message is not answered yet."
    finally:
        for request in sent:
            request.continue_()
        canvas.page.unroute("**/prompt")
    canvas.page.wait_for_function("window.chatEnd")
    assert chat.texts == ["What is it?", "A fox."] and chat.field.input_value() == "And where?"


def test_a_status_that_is_older_than_the_message_does_not_end_the_wait(chats, canvas):
    """Of the run before: the server was idle when it sent it."""
    [chat] = chats("A fox.")
    chat.writes("a fox in the snow ", held=True)
    sent = []
    late = "app.api.dispatchCustomEvent('status', {exec_info: {queue_remaining: 0}})"
    canvas.page.route("**/prompt", lambda request: sent.append(request))
    try:
        with canvas.page.expect_request("**/prompt"):
            chat.begin("What is it?")
        canvas.evaluate(late)
        chat.field.press("Enter")
        assert chat.status.inner_text() == "The last message is not answered yet."
    finally:
        with canvas.page.expect_response("**/prompt"):
            for request in sent:
                request.continue_()
        canvas.page.unroute("**/prompt")
    canvas.evaluate(late)
    canvas.page.wait_for_timeout(300)
    chat.field.press("Enter")
    assert chat.status.inner_text() == "The last message is not answered yet."
    chat.let_go()
    assert chat.end() == "execution_success" and chat.texts[0] == "What is it?"
    assert len(chat.texts) == 2 and canvas.server.get("/queue")["queue_pending"] == []


def test_an_answer_finds_its_chat_though_the_next_message_was_typed_and_another_workflow_looked_at(chats, canvas):
    [chat] = chats("A fox.")
    chat.begin_held("What is it?")
    chat.field.fill("And where?")
    canvas.evaluate(LEAVE)
    canvas.reset()
    chat.let_go()
    canvas.page.wait_for_function("window.chatEnd")
    canvas.evaluate(COME_BACK)
    expect(chat.log.locator(":scope > *")).to_have_count(2, timeout=PATIENCE)
    assert chat.texts[0] == "What is it?" and chat.field.input_value() == "And where?"


def begin_and_hold(chat) -> None:
    """Send a message whose answer is written up to its last token, so that the page hears no more of it for now."""
    chat.writes("a fox in the snow", held=True)
    chat.begin("What is it?")
    expect(chat.log).to_contain_text("a fox i", timeout=PATIENCE)
    chat.canvas.page.wait_for_timeout(500)


def is_still_made(chat) -> None:
    """Its turn is shown, and the message after it waits for the answer, which then comes."""
    expect(chat.status).to_have_text("Writing …", timeout=PATIENCE)
    shown = chat.texts
    assert len(shown) == 2 and shown[0] == "What is it?" and shown[1].startswith("a fox i")
    chat.field.fill("And where?")
    chat.field.press("Enter")
    assert chat.status.inner_text() == "The last message is not answered yet."
    chat.let_go()
    chat.canvas.page.wait_for_function("window.chatEnd")
    expect(chat.log).not_to_have_attribute("aria-busy", "true", timeout=PATIENCE)
    assert chat.texts == ["What is it?", "a fox in the snow"] and chat.field.input_value() == "And where?"
    assert chat.canvas.server.get("/queue")["queue_pending"] == [] and chat.status.inner_text() == ""


def test_a_turn_is_still_being_made_when_its_workflow_is_looked_at_again(chats, canvas):
    [chat] = chats("A fox.")
    begin_and_hold(chat)
    canvas.evaluate(LEAVE)
    canvas.reset()
    canvas.evaluate(COME_BACK)
    is_still_made(chat)
    assert canvas.errors == []


def test_a_turn_is_still_being_made_when_undo_has_made_its_node_anew(chats, canvas):
    [chat] = chats("A fox.")
    begin_and_hold(chat)
    canvas.evaluate(CHANGE, chat.node)
    undo(canvas)
    assert canvas.evaluate("(id) => app.graph.getNodeById(id) !== window.before", chat.node)
    is_still_made(chat)
    assert canvas.errors == []


def test_a_turn_whose_message_is_linked_is_still_being_made_when_its_workflow_is_looked_at_again(chats, canvas):
    [chat] = chats("A fox.")
    chat.link("What is it?")
    chat.writes("a fox in the snow", held=True)
    canvas.evaluate("() => { app.queuePrompt(0, 1) }")
    chat.shows("a fox i")
    canvas.page.wait_for_timeout(500)
    canvas.evaluate(LEAVE)
    canvas.reset()
    canvas.evaluate(COME_BACK)
    chat.shows("a fox i")
    chat.let_go()
    canvas.page.wait_for_function("(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'history').value !== ''", arg=chat.node)
    assert chat.saved == [("user", "What is it?", 0), ("assistant", "a fox in the snow", 0)]
    assert canvas.errors == []


def test_a_message_is_waited_for_and_answered_where_the_browser_keeps_no_more(chats, canvas):
    [chat] = chats("A fox.")
    canvas.evaluate(STORAGE_IS_FULL, True)
    try:
        begin_and_hold(chat)
        is_still_made(chat)
    finally:
        canvas.evaluate(STORAGE_IS_FULL, False)
    assert canvas.errors == []


def test_of_two_equal_messages_the_one_that_is_answered_first_is_waited_for_no_longer(chats, canvas):
    """The second, which was put in front of the first."""
    chat, other = chats("A fox.", "A bear.")
    other.begin_held("And what is it here?", "a bear in the snow ")
    with canvas.page.expect_response("**/prompt"):
        chat.begin("What is it?")
    with canvas.page.expect_response("**/prompt"):
        canvas.evaluate("(id) => { app.queuePrompt(-1, 1, [String(id)]) }", chat.node)
    other.let_go()
    expect(chat.status).to_contain_text("changed since", timeout=PATIENCE)
    assert chat.texts == ["What is it?", "A fox."] and chat.field.input_value() == ""
    assert canvas.errors == []


def test_a_message_that_the_server_refuses_does_not_hold_back_the_next(chats, canvas):
    [chat] = chats("A fox.")
    chat.set("width", 1)
    with canvas.page.expect_response("**/prompt") as answered:
        chat.begin("What is it?")
    assert answered.value.status == 400
    canvas.page.wait_for_function("app.lastNodeErrors")
    chat.set("width", 64)
    assert chat.send("What is it?") == "execution_success"
    assert chat.texts == ["What is it?", "A fox."]


def test_a_message_that_is_taken_out_of_the_queue_does_not_hold_back_the_next(chats, canvas):
    [chat] = chats("A fox.")
    chat.begin_held("What is it?")
    canvas.evaluate("app.queuePrompt(0, 1)")
    assert len(canvas.server.get("/queue")["queue_pending"]) == 1
    canvas.server.post("/queue", {"clear": True})
    canvas.server.interrupt()
    expect(chat.status).to_contain_text("as it was", timeout=PATIENCE)
    chat.writes("A fox.")
    chat.begin("Again?")
    for _ in range(PATIENCE // 200):  # the page asks the server whether it is idle before it takes another
        if canvas.evaluate("window.chatRun"):
            break
        canvas.page.wait_for_timeout(200)
        chat.field.press("Enter")
    assert chat.end() == "execution_success"
    assert chat.texts == ["Again?", "A fox."]


def test_a_message_that_is_taken_out_of_the_queue_before_its_run_says_so(chats, canvas):
    first, second = chats("A fox.", "A bear.")
    first.begin_held("What is it?")
    with canvas.page.expect_response("**/prompt"):
        second.begin("And what is it here?")
    canvas.server.post("/queue", {"clear": True})
    first.let_go()
    expect(second.status).to_contain_text("as it was", timeout=PATIENCE)
    expect(first.log).not_to_have_attribute("aria-busy", "true", timeout=PATIENCE)
    assert first.texts[0] == "What is it?" and first.status.inner_text() == ""
    assert second.field.input_value() == "And what is it here?"
    assert second.send("And what is it here?") == "execution_success"
    assert second.texts == ["And what is it here?", "A bear."]


def test_a_message_that_was_cancelled_does_not_hold_back_the_next_while_others_wait(chats, canvas):
    first, second = chats("A fox.", "A bear.")
    for chat in (first, second):
        chat.writes("a fox in the snow ", held=True)
    first.begin("What is it?")
    expect(first.status).to_have_text("Writing …", timeout=PATIENCE)
    cancelled = first.run
    second.begin("And what is it here?")
    canvas.server.interrupt()
    expect(first.status).to_contain_text("as it was", timeout=PATIENCE)
    expect(second.status).to_have_text("Writing …", timeout=PATIENCE)
    with canvas.page.expect_request("**/prompt", timeout=PATIENCE):
        first.field.press("Enter")
    assert first.status.inner_text() != "The last message is not answered yet."
    assert canvas.server.wait(cancelled)["status"]["status_str"] == "error"
    canvas.server.post("/queue", {"clear": True})
    second.let_go()
    expect(second.log.locator(":scope > *")).to_have_count(2, timeout=PATIENCE)


def test_an_answer_that_came_while_another_workflow_was_open_is_added_when_its_own_is_open_again(chats, canvas):
    [chat] = chats("A fox.")
    chat.field.fill("What is it?")
    saved = canvas.workflow()
    canvas.reset()
    turns = [{"role": "user", "text": "What is it?", "images": []}, {"role": "assistant", "text": "A fox.", "images": []}]
    answer = {
        "before": "",
        "message": "What is it?",
        "conversation": json.dumps({"format": "omnigen2-conversation", "version": 1, "turns": turns}),
    }
    canvas.evaluate(
        """([id, answer]) => app.api.dispatchCustomEvent('executed', {
            node: String(id), display_node: String(id), prompt_id: 'none', output: {omnigen2_chat: [answer]},
        })""",
        [chat.node, answer],
    )
    canvas.load(saved)
    assert chat.texts == ["What is it?", "A fox."] and chat.field.input_value() == ""
