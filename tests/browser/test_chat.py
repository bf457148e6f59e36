"""The conversation on OmniGen2 Chat, as the page shows it, sends to it, and keeps it."""

from __future__ import annotations

import json

import pytest
from browser_harness import PATIENCE
from chat_nodes import DRAW, EMPTY, Chat, undo
from PIL import Image
from playwright.sync_api import expect

# What would be a picture, a link, bold or a script on a page that reads it as HTML or as Markdown.
HOSTILE = '<img src="x" onerror="window.broken = true"> ![a](http://x.y/z.png) [b](http://x.y) **fox** <b>&amp;</b>'
SHOW = """([from, to]) => {
    const slot = app.graph.getNodeById(to).inputs.findIndex(input => input.name === 'images.image_1');
    app.graph.getNodeById(from).connect(1, app.graph.getNodeById(to), slot);
}"""
"""Has what one chat draws be shown to another."""


def test_a_message_is_sent_with_enter_and_the_answer_is_shown_as_characters(chats, canvas):
    [chat] = chats(HOSTILE)
    assert chat.log.inner_text() == EMPTY
    chat.field.fill("one")
    chat.field.press("Shift+Enter")
    chat.field.press_sequentially(HOSTILE)
    message = f"one\n{HOSTILE}"
    assert chat.get("message") == message and chat.saved == []
    assert chat.send(message) == "execution_success"
    assert chat.turns == [("You", f"{message}\n"), ("OmniGen2", f"{HOSTILE}\n")]
    assert chat.saved == [("user", message, 0), ("assistant", HOSTILE, 0)]
    assert chat.field.input_value() == "" and chat.status.inner_text() == ""
    assert canvas.page.locator('img[src="x"], img[src*="x.y"], a[href*="x.y"]').count() == 0
    assert chat.log.locator("b, script, img").count() == 0 and canvas.evaluate("window.broken === undefined")
    assert canvas.errors == []


def test_a_picture_is_shown_from_the_output_folder(chats, canvas):
    [chat] = chats(DRAW)
    assert chat.send("Draw a fox.") == "execution_success"
    chat.sees(64)
    address = chat.pictures.get_attribute("src")
    assert "type=output" in address and "subfolder=omnigen2_chat" in address
    assert chat.pictures.get_attribute("alt").startswith("Picture omnigen2_chat/drawn_")
    assert chat.saved == [("user", "Draw a fox.", 0), ("assistant", "", 1)]
    assert canvas.errors == []


def test_saving_and_opening_the_workflow_shows_the_conversation_again(chats, canvas):
    [chat] = chats(DRAW)
    chat.send("Draw a fox.")
    chat.writes("It is red.")
    chat.send("Which colour?")
    chat.field.fill("not sent yet")
    history, shown = chat.get("history"), chat.turns
    saved = json.loads(json.dumps(canvas.workflow()))
    canvas.reset()
    canvas.load(saved)
    again = Chat(canvas, chat.node)
    assert again.turns == shown and again.get("history") == history
    assert again.field.input_value() == "not sent yet"
    again.sees(64)
    prompt = canvas.prompt()[str(chat.node)]["inputs"]
    assert prompt["history"] == history and prompt["message"] == "not sent yet" and prompt["width"] == 64
    assert canvas.errors == []


def test_the_newest_turn_is_in_view(chats, canvas):
    [chat] = chats("Yes.")
    turns = [{"role": role, "text": f"{role} {i}\n" * 6, "images": []} for i in range(12) for role in ("user", "assistant")]
    chat.set("history", json.dumps({"format": "omnigen2-conversation", "version": 1, "turns": turns}))
    chat.send("Sure?")
    assert len(chat.turns) == 26
    assert canvas.evaluate(
        """(id) => {
            const log = app.graph.getNodeById(id).widgets.find(w => w.name === 'history').element;
            const box = log.getBoundingClientRect(), last = log.querySelector('[role="log"]').lastElementChild.getBoundingClientRect();
            return last.top >= box.top && last.bottom <= box.bottom + 8 && box.height < 700;
        }""",
        chat.node,
    )


def test_a_copy_of_the_node_has_the_conversation_and_goes_its_own_way(chats, canvas):
    [chat] = chats("A fox.")
    chat.send("What is it?")
    ids = canvas.evaluate(
        """(id) => {
            const before = new Set(app.graph.nodes.map(n => n.id));
            app.canvas.copyToClipboard([app.graph.getNodeById(id)]);
            app.canvas.pasteFromClipboard({connectInputs: true});
            return app.graph.nodes.map(n => n.id).filter(id => !before.has(id));
        }""",
        chat.node,
    )
    [copy] = [Chat(canvas, node) for node in ids]
    assert copy.turns == chat.turns and copy.get("history") == chat.get("history")
    chat.writes("Yes.")
    chat.send("Sure?")
    assert chat.texts == ["What is it?", "A fox.", "Sure?", "Yes."]
    assert copy.texts == ["What is it?", "A fox."]
    assert canvas.errors == []


def test_undo_takes_a_turn_back_and_gives_the_message_back(chats, canvas):
    [chat] = chats("A fox.")
    chat.send("What is it?")
    chat.writes("Yes.")
    chat.send("Sure?")
    undo(canvas)
    assert chat.texts == ["What is it?", "A fox."]
    assert chat.field.input_value() == "Sure?"
    undo(canvas, "redo")
    assert chat.texts == ["What is it?", "A fox.", "Sure?", "Yes."]
    chat.part("button").nth(1).click()
    assert chat.log.inner_text() == EMPTY and chat.get("history") == ""
    undo(canvas)
    assert len(chat.texts) == 4


def test_two_chats_do_not_mix(chats, canvas):
    first, second = chats("A fox.", "A wolf.")
    first.field.fill("What is left?")
    second.field.fill("What is right?")
    second.follow()
    canvas.run()
    first.is_answered()
    second.is_answered()
    assert first.texts == ["What is left?", "A fox."]
    assert second.texts == ["What is right?", "A wolf."]
    first.writes("Yes.")
    first.send("Sure?")
    assert len(first.texts) == 4 and len(second.texts) == 2
    assert canvas.errors == []


def test_a_message_runs_its_chat_and_what_hangs_on_it_and_nothing_else(chats, canvas):
    """Not a chat in which nothing was said yet, either."""
    first, second = chats("A fox.", "A wolf.")
    second.field.fill("Not sent yet.")
    for chat in (first, second):
        chat.set("control_after_generate", "increment")
    shown = canvas.evaluate(
        """(id) => {
            const [shown, other] = [0, 1].map(() => {
                const node = LiteGraph.createNode('PreviewAny');
                app.graph.add(node);
                return node;
            });
            app.graph.getNodeById(id).connect(0, shown, 0);
            app.graph.nodes.find(n => n.type === 'TestWrites').connect(0, other, 0);
            return shown.id;
        }""",
        first.node,
    )
    assert first.send("What is left?") == "execution_success"
    assert set(canvas.server.wait(first.run)["outputs"]) == {str(first.node), str(shown)}
    assert first.texts == ["What is left?", "A fox."] and second.log.inner_text() == EMPTY
    assert second.field.input_value() == "Not sent yet."
    canvas.page.wait_for_function("(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'seed').value === 1", arg=first.node)
    assert second.get("seed") == 0
    assert canvas.errors == []


def test_a_message_in_one_chat_does_not_hold_back_what_was_being_written_in_another(chats, canvas):
    first, second = chats("A fox.", "A wolf.")
    second.field.fill("What is right?")
    first.begin_held("What is left?")
    second.field.press("Enter")
    canvas.page.wait_for_function("() => fetch('/queue').then(r => r.json()).then(q => q.queue_pending.length === 1)")
    assert second.status.inner_text() == ""
    first.let_go()
    expect(second.log.locator(":scope > *")).to_have_count(2, timeout=PATIENCE)
    assert first.texts[0] == "What is left?" and second.texts == ["What is right?", "A wolf."]


def test_what_is_being_written_in_a_chat_behind_this_one_is_not_sent(chats, canvas):
    first, second = chats("A fox.", "A wolf.")
    canvas.evaluate("([from, to]) => app.graph.getNodeById(from).connect(2, app.graph.getNodeById(to), 'conversation')", [first.node, second.node])
    assert canvas.prompt()[str(second.node)]["inputs"]["conversation"] == [str(first.node), 2]
    second.field.fill("Not sent yet.")
    assert first.send("What is it?") == "execution_success"
    assert set(canvas.server.wait(first.run)["outputs"]) == {str(first.node)}
    assert second.log.inner_text() == EMPTY and second.field.input_value() == "Not sent yet."
    assert second.send("And now?") == "execution_success"
    assert second.texts == ["What is it?", "A fox.", "And now?", "A wolf."]


def test_what_is_being_written_in_a_chat_that_this_one_needs_is_not_sent(chats, canvas):
    first, second = chats("A fox.", "A wolf.")
    canvas.evaluate("([from, to]) => app.graph.getNodeById(from).connect(2, app.graph.getNodeById(to), 'conversation')", [first.node, second.node])
    assert first.send("What is it?") == "execution_success"
    first.field.fill("Not sent ye")
    assert second.send("And now?") == "execution_success"
    assert second.texts == ["What is it?", "A fox.", "And now?", "A wolf."]
    assert first.texts == ["What is it?", "A fox."] and first.field.input_value() == "Not sent ye"
    assert canvas.errors == []


def test_a_chat_that_an_input_holds_back_says_so(chats, canvas):
    """An image of another chat, whose last answer was in words."""
    first, second = chats("A fox.", "A wolf.")
    canvas.evaluate(SHOW, [first.node, second.node])
    assert canvas.prompt()[str(second.node)]["inputs"]["images.image_1"] == [str(first.node), 1]
    assert first.send("What is it?") == "execution_success"
    second.begin("And this?")
    expect(second.status).to_contain_text("one of its inputs gave nothing", timeout=PATIENCE)
    assert second.log.inner_text() == EMPTY and second.field.input_value() == "And this?"
    first.writes(DRAW)
    assert first.send("Draw it.") == "execution_success"
    assert second.send("And this?") == "execution_success"
    assert second.saved == [("user", "And this?", 1), ("assistant", "A wolf.", 0)]
    assert canvas.errors == []


def test_a_chat_whose_message_is_linked_says_so_too_when_an_input_holds_it_back(chats, canvas):
    first, second = chats("A fox.", "A wolf.")
    canvas.evaluate(SHOW, [first.node, second.node])
    assert first.send("What is it?") == "execution_success"
    second.link("And this?")
    canvas.run()
    second.shows("one of its inputs gave nothing")
    assert second.saved == []
    assert canvas.errors == []


def test_a_chat_whose_link_brings_an_empty_message_says_only_that_nothing_was_asked(chats, canvas):
    [chat] = chats("A fox.")
    chat.link("")
    canvas.run()
    canvas.page.get_by_text("nothing was asked").first.wait_for(timeout=PATIENCE)
    canvas.page.wait_for_timeout(500)
    chat.shows(EMPTY)
    status = "(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'history').element.querySelector('[role=\"status\"]').textContent"
    assert canvas.evaluate(status, chat.node) == ""
    assert canvas.errors == []


def test_a_chat_that_is_muted_says_so_and_runs_nothing(chats, canvas):
    muted, other = chats("A fox.", "A wolf.")
    other.field.fill("Not sent yet.")
    canvas.evaluate("(id) => { app.graph.getNodeById(id).mode = 2 }", muted.node)
    muted.field.fill("What is it?")
    muted.field.press("Enter")
    expect(muted.status).to_contain_text("does not run", timeout=PATIENCE)
    assert other.log.inner_text() == EMPTY and other.field.input_value() == "Not sent yet."
    queue = canvas.server.get("/queue")
    assert queue["queue_running"] == queue["queue_pending"] == []


def test_running_everything_passes_over_a_chat_in_which_nothing_was_said(chats, canvas):
    first, second = chats("A fox.", "A wolf.")
    first.field.fill("What is left?")
    first.follow()
    canvas.run()
    first.is_answered()
    assert first.texts == ["What is left?", "A fox."]
    assert second.log.inner_text() == EMPTY and second.get("history") == ""
    canvas.page.get_by_text("nothing was asked").first.wait_for(timeout=PATIENCE)
    assert canvas.errors == []


def test_text_is_shown_while_it_is_written_and_cancelling_leaves_the_conversation(chats, canvas):
    [chat] = chats("A fox.")
    chat.send("What is it?")
    before = chat.get("history")
    chat.writes("a fox in the snow ", held=True)
    chat.begin("More?")
    canvas.page.wait_for_function(
        """(id) => {
            const log = app.graph.getNodeById(id).widgets.find(w => w.name === 'history').element.querySelector('[role="log"]');
            return log.children.length === 4 && log.lastElementChild.textContent.includes('a fox i');
        }""",
        arg=chat.node,
    )
    assert chat.texts[2] == "More?" and chat.status.inner_text() == "Writing …"
    canvas.server.interrupt()
    assert chat.end() == "execution_interrupted"
    assert chat.texts == ["What is it?", "A fox."] and chat.get("history") == before
    assert chat.field.input_value() == "More?" and "as it was" in chat.status.inner_text()
    assert canvas.errors == []


def test_a_long_conversation_drops_its_oldest_pictures_first_and_the_node_says_so(chats, canvas):
    """As in the host's test of fifty turns, at the limit: what the page shows of it."""
    [chat] = chats(DRAW)
    names = [f"omnigen2_chat/long_{i}.png" for i in range(4)]
    (canvas.server.output / "omnigen2_chat").mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (64, 48), "red").save(canvas.server.output / name)
    turns = [{"role": role, "text": f"{role} {i}", "images": []} for i in range(6) for role in ("user", "assistant")]
    for turn, name in zip(turns[3:10:2], names, strict=True):
        turn["images"] = [name]
    chat.set("history", json.dumps({"format": "omnigen2-conversation", "version": 1, "turns": turns}))
    chat.set("keep_turns", 12)
    chat.set("keep_images", 3)
    assert chat.send("Draw a fox.") == "execution_success"
    shown = chat.texts
    assert len(shown) == 12 and shown[0] == "user 1" and shown[10] == "Draw a fox."
    chat.sees(64, 64, 64, 64)  # those that were sent and that of the answer
    assert shown[1] == "assistant 1\nEarlier pictures that are no longer kept: 1"
    notes = canvas.page.get_by_role("status", name="Notes of the last run").inner_text()
    assert f"the oldest images were dropped: {names[0]}." in notes and "the oldest 2 turns were dropped." in notes
    assert canvas.errors == []


@pytest.mark.parametrize(
    ("history", "shown"),
    [
        ("{", "no conversation that can be shown"),
        ('{"format": "omnigen2-conversation", "turns": [null, {"role": 5, "text": {}, "images": ["../../x", 7]}]}', "OmniGen2"),
        ("[" * 5000, "no conversation that can be shown"),
    ],
)
def test_a_history_that_is_no_conversation_harms_nothing(chats, canvas, history, shown):
    [chat] = chats("A fox.")
    chat.set("history", history)
    canvas.page.wait_for_timeout(300)
    assert shown in chat.log.inner_text()
    assert chat.get("history") == history
    assert canvas.evaluate("window.broken === undefined")


def test_everything_has_a_name_and_is_reached_with_the_keyboard(chats, canvas):
    [chat] = chats("A fox.")
    assert chat.field.get_attribute("aria-label") == "Message"
    assert chat.log.get_attribute("aria-label") == "Conversation"
    assert [button.inner_text() for button in chat.part("button").all()] == ["Send", "New conversation"]
    chat.field.fill("What is it?")
    chat.field.press("Tab")
    assert canvas.evaluate("document.activeElement.textContent") == "Send"
    chat.follow()
    canvas.page.keyboard.press("Enter")
    assert chat.end() == "execution_success"
    assert chat.texts == ["What is it?", "A fox."]


def test_no_key_pressed_on_the_conversation_or_its_buttons_reaches_the_canvas(chats, canvas):
    [chat] = chats("A fox.")
    canvas.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", chat.node)
    for element in (chat.part('[role="region"]'), *chat.part("button").all()):
        element.focus()
        assert element.evaluate("element => element === document.activeElement")
        canvas.page.keyboard.press("Delete")
        assert canvas.evaluate("(id) => !!app.graph.getNodeById(id)", chat.node), "the node is still there"


@pytest.mark.parametrize(("locale", "send"), [("ko", "보내기"), ("zh", "发送")])
def test_the_field_speaks_the_user_s_language(open_canvas, locale, send):
    canvas = open_canvas(locale=locale)
    chat = Chat(canvas, canvas.add_node("OmniGen2Chat"))
    assert chat.part("button").first.inner_text() == send
