"""What the encoder writes, as the page shows it: while it is written, and in the field where it can be edited."""
from __future__ import annotations

import uuid

import pytest
from browser_harness import PATIENCE
from chat_nodes import undo
from playwright.sync_api import expect


# What would be a picture, a link or bold on a page that reads it as HTML or as Markdown.
HOSTILE = '<img src="x" onerror="window.broken = true"> ![a](http://x.y/z.png) [b](http://x.y) **fox** <b>&amp;</b>'

MAKE = """([folder, text, type = 'OmniGen2EnhancePrompt', field = 'prompt']) => {
    const [loader, writer, made] = ['OmniGen2LoadFolder', 'TestWrites', type].map((type, i) => {
        const node = LiteGraph.createNode(type);
        node.pos = [100 + 350 * i, 100];
        app.graph.add(node);
        return node;
    });
    const set = (node, name, value) => { node.widgets.find(w => w.name === name).value = value };
    set(loader, 'folder', folder);
    set(writer, 'text', text);
    set(made, field, 'a fox');
    loader.connect(1, writer, 0);
    writer.connect(0, made, 0);
    return made.id;
}"""
ASK = ["OmniGen2Ask", "question"]
"""What makes `MAKE` end with that node in place of OmniGen2 Enhance Prompt."""
WRITES = """(values) => {
    const { widgets } = app.graph.nodes.find(n => n.type === 'TestWrites');
    for (const [name, value] of Object.entries(values)) widgets.find(w => w.name === name).value = value;
}"""
IS_SHOWN = """([id, text]) => {
    const shown = app.graph.getNodeById(id).widgets.find(w => w.name === '$$node-text-preview')?.value ?? '';
    return text ? shown.startsWith(text) : shown === '\\u200b';
}"""
PUT_INSIDE = "(id) => app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)])).node.id"
LOOK_INTO = "(id) => { const node = app.rootGraph.getNodeById(id); app.canvas.openSubgraph(node.subgraph, node) }"
LOOK_OUT = "() => { app.canvas.setGraph(app.rootGraph) }"
IS_SHOWN_INSIDE = """([id, text]) => {
    const [inner] = app.rootGraph.getNodeById(id).subgraph.nodes;
    const shown = inner.widgets.find(w => w.name === '$$node-text-preview')?.value ?? '';
    return text ? shown.startsWith(text) : shown === '\\u200b';
}"""
EDITED = "(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'edited').value"


def shows(canvas, node, text):
    """Wait until the node's text begins with this, or, for "", until there is a text without anything to see."""
    canvas.page.wait_for_function(IS_SHOWN, arg=[node, text], timeout=PATIENCE)


def edit_button(canvas, name="Edit the rewritten prompt"):
    """By its role and name, as a screen reader finds it."""
    return canvas.page.get_by_role("button", name=name)


def clear_field(canvas, node):
    canvas.evaluate("(id) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'edited').value = '' }", node)


def test_written_text_is_shown_as_characters_and_can_be_edited(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, HOSTILE])
    expect(edit_button(canvas)).to_have_attribute("aria-disabled", "true")
    edit_button(canvas).dispatch_event("click")
    assert canvas.evaluate(EDITED, node) == ""
    canvas.run()
    canvas.page.get_by_text(HOSTILE, exact=True).first.wait_for(timeout=60_000)
    assert canvas.page.locator('img[src="x"], img[src*="x.y"], a[href*="x.y"]').count() == 0
    assert canvas.evaluate("window.broken === undefined")
    edit_button(canvas).click()
    assert canvas.evaluate(EDITED, node) == HOSTILE
    saved = canvas.workflow()
    canvas.reset()
    canvas.load(saved)
    assert canvas.evaluate(EDITED, node) == HOSTILE
    assert canvas.prompt()[str(node)]["inputs"]["edited"] == HOSTILE
    assert canvas.prompt()[str(node)]["inputs"]["max_length"] == 320
    assert canvas.errors == []


def test_the_button_is_pressed_by_the_keyboard_too_and_no_key_reaches_the_canvas(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, "a red fox"])
    canvas.run()
    for key in ("Enter", "Space"):
        clear_field(canvas, node)
        edit_button(canvas).focus()
        canvas.page.keyboard.press(key)
        assert canvas.evaluate(EDITED, node) == "a red fox", key
    canvas.page.keyboard.press("Delete")
    assert canvas.evaluate("(id) => !!app.graph.getNodeById(id)", node)
    assert canvas.errors == []


def test_the_rewritten_prompt_outlives_undo_and_is_saved_and_copied_with_the_node(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, "a red fox"])
    canvas.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    canvas.evaluate("(id) => { app.graph.getNodeById(id).title = 'another' }", node)
    canvas.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    canvas.run()
    expect(edit_button(canvas)).to_have_attribute("aria-disabled", "false")
    for _ in range(3):  # a run may leave a step of its own: a seed that was drawn
        undo(canvas)
        if canvas.evaluate("(id) => app.graph.getNodeById(id).title", node) != "another":
            break
    else:
        raise AssertionError("nothing was undone")
    edit_button(canvas).click()
    assert canvas.evaluate(EDITED, node) == "a red fox"
    clear_field(canvas, node)
    saved = canvas.workflow()
    canvas.reset()
    canvas.load(saved)
    copy = canvas.evaluate(
        """(id) => {
            app.canvas.copyToClipboard([app.graph.getNodeById(id)]);
            app.canvas.pasteFromClipboard();
            const [copy] = app.graph.nodes.filter(n => n.type === 'OmniGen2EnhancePrompt' && n.id !== id);
            return copy.id;
        }""",
        node,
    )
    expect(edit_button(canvas)).to_have_count(2)
    for i, own in enumerate((node, copy)):
        expect(edit_button(canvas).nth(i)).to_have_attribute("aria-disabled", "false")
        edit_button(canvas).nth(i).dispatch_event("click")
        assert canvas.evaluate(EDITED, own) == "a red fox"
    assert canvas.errors == []


def test_running_with_an_edited_prompt_leaves_the_rewritten_one_to_the_button(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, "a red fox"])
    canvas.run()
    expect(edit_button(canvas)).to_have_attribute("aria-disabled", "false")
    canvas.evaluate("(id) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'edited').value = 'a blue fox' }", node)
    canvas.run()
    edit_button(canvas).click()
    assert canvas.evaluate(EDITED, node) == "a red fox"


def test_a_result_that_was_kept_changes_nothing_on_the_canvas(folder, canvas):
    """What changed it would queue the next run, where runs follow changes."""
    canvas.evaluate(MAKE, [folder, "a red fox"])
    canvas.evaluate("() => { app.graph.nodes.flatMap(n => n.widgets ?? []).filter(w => w.name.startsWith('control')).forEach(w => { w.value = 'fixed' }) }")
    canvas.run()
    canvas.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    canvas.evaluate("() => { window.changes = 0; app.api.addEventListener('graphChanged', () => { window.changes += 1 }) }")
    canvas.run()
    assert canvas.evaluate("window.changes") == 0


def test_text_is_written_on_its_own_node_whatever_is_in_view(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, "a red fox"])
    said = canvas.evaluate(
        """async (id) => {
            const { dispatchCustomEvent } = app.api, told = [];
            app.api.dispatchCustomEvent = function (kind, detail) {
                if (kind === 'progress_text') told.push(detail);
                return dispatchCustomEvent.call(this, kind, detail);
            };
            const hear = (node) => app.api.dispatchEvent(new CustomEvent('omnigen2.text', {detail: {node, prompt_id: 'x', text: 'fox'}}));
            hear(String(id));
            hear(`${id}:${id}`);
            delete app.api.dispatchCustomEvent;
            return told;
        }""",
        node,
    )
    assert said == [{"nodeId": str(node), "text": "fox"}], "a node inside of another is not in view"


def test_an_answer_without_a_word_takes_the_place_of_the_last_one(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, "a red fox", *ASK])
    canvas.run()
    shows(canvas, node, "a red fox")
    canvas.evaluate(WRITES, {"text": ""})
    canvas.run()
    shows(canvas, node, "")
    assert canvas.errors == []


def test_a_run_that_was_cancelled_leaves_nothing_on_the_node_that_looks_like_an_answer(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, "a red fox", *ASK])
    canvas.run()
    shows(canvas, node, "a red fox")
    never = canvas.server.folder / "never"
    canvas.evaluate(WRITES, {"text": "a blue wolf in the snow", "seconds": 0.02, "until": str(never)})
    canvas.evaluate("() => { app.queuePrompt(0, 1) }")
    shows(canvas, node, "a blue")
    canvas.server.interrupt()
    shows(canvas, node, "")
    canvas.evaluate(WRITES, {"text": "a green fox", "until": ""})
    canvas.run()
    shows(canvas, node, "a green fox")
    assert canvas.errors == []


@pytest.mark.parametrize(("cancelled", "left"), [(True, ""), (False, "a blue wolf in the snow")], ids=["cancelled", "finished"])
def test_half_an_answer_does_not_stay_on_a_node_that_was_out_of_view_when_its_run_ended(folder, canvas, cancelled, left):
    node = canvas.evaluate(MAKE, [folder, "a red fox", *ASK])
    holder = canvas.evaluate(PUT_INSIDE, node)
    go_on = canvas.server.folder / f"go_on_{uuid.uuid4().hex}"
    canvas.evaluate(WRITES, {"text": "a blue wolf in the snow", "seconds": 0.02, "until": str(go_on)})
    canvas.evaluate(LOOK_INTO, holder)
    canvas.page.wait_for_timeout(500)
    try:
        canvas.evaluate("() => { app.queuePrompt(0, 1) }")
        canvas.page.wait_for_function(IS_SHOWN_INSIDE, arg=[holder, "a blue"], timeout=PATIENCE)
        canvas.evaluate(LOOK_OUT)
    finally:
        if cancelled:
            canvas.server.interrupt()
        else:
            go_on.touch()
    canvas.page.wait_for_function(IS_SHOWN_INSIDE, arg=[holder, left], timeout=PATIENCE)
    assert canvas.errors == []


def test_the_tab_key_comes_to_the_button(folder, canvas):
    canvas.evaluate(MAKE, [folder, "a red fox"])
    edit_button(canvas).wait_for()
    focused = "document.activeElement?.textContent"
    canvas.page.locator("textarea").last.focus()
    for _ in range(6):
        canvas.page.keyboard.press("Tab")
        if canvas.evaluate(focused) == "Edit the rewritten prompt":
            return
    raise AssertionError(f"after six presses the focus is on {canvas.evaluate(focused)!r}")


@pytest.mark.parametrize(("locale", "name"), [("ko", "다시 쓴 프롬프트 편집"), ("zh", "编辑改写后的提示词")])
def test_the_button_is_named_in_the_language_of_the_page(open_canvas, locale, name):
    canvas = open_canvas(locale=locale)
    canvas.add_node("OmniGen2EnhancePrompt")
    edit_button(canvas, name).wait_for()


def test_the_button_is_in_no_prompt_and_in_no_saved_value(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, "a red fox"])
    inputs = canvas.prompt()[str(node)]["inputs"]
    assert "edited" in inputs and "omnigen2_edit_prompt" not in inputs
    saved = next(entry for entry in canvas.workflow()["nodes"] if str(entry["id"]) == str(node))
    values = canvas.evaluate("(id) => app.graph.getNodeById(id).widgets.filter(w => w.serialize !== false).length", node)
    assert len(saved["widgets_values"]) == values
