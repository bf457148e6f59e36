"""The rounds of a reflection loop on its node: shown as they come, chosen and picked by hand, kept with the workflow."""
from __future__ import annotations

import json

import pytest
from browser_harness import PATIENCE
from playwright.sync_api import expect
from reflection_nodes import ASKED, HOSTILE, LOADED, RIGHT, SLOWLY, add_board, board, kept, labels, press

KOREAN = "여우가 파란색입니다. 빨간색으로 바꾸세요."
SCRIPT = """(script) => { app.graph.nodes.find(n => n.type === 'TestReflects').widgets.find(w => w.name === 'script').value = script }"""
VALUE = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"
SET = """([id, name, value]) => {
    const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
    widget.value = value;
    widget.callback?.(value);
}"""
LISTED = """([id]) => {
    const [images, list] = ['EmptyImage', 'RebatchImages'].map((kind, i) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [60, 400 + 200 * i];
        app.graph.add(node);
        return node;
    });
    for (const [name, value] of Object.entries({width: 64, height: 64, batch_size: 2})) images.widgets.find(w => w.name === name).value = value;
    images.connect(0, list, 0);
    const node = app.graph.getNodeById(id);
    list.connect(0, node, node.findInputSlot('images.image_1'));
}"""
# The next workflow that is opened has its nodes, and is the active one only after goOn().
SLOW_TO_OPEN = """() => {
    window.nodesAreThere = false;
    let waiting = new Promise((go) => { window.goOn = go });  // The extension stays on the page.
    app.registerExtension({
        name: `test.slow.${performance.now()}`,
        afterConfigureGraph: async () => {
            const opened = waiting;
            waiting = null;
            window.nodesAreThere = true;
            await opened;
        },
    });
}"""
STATE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"


def test_rounds_are_shown_and_a_click_tells_what_was_said(loop, canvas):
    assert board(canvas).get_by_role("status").inner_text() == "Rounds appear here as they are drawn."
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    assert labels(canvas) == ["Round 0, drawn, not satisfied, 0.30", "Round 1 · best, edited, satisfied, 0.90"]
    assert board(canvas).get_by_role("status").inner_text() == "Ended: the picture is right."
    details = board(canvas).get_by_role("region", name="What was said of the round")
    assert "Round 1" in details.inner_text()
    board(canvas).get_by_role("button", name="Round 0, drawn").click()
    text = details.inner_text()
    assert HOSTILE in text and "Correction: Make the fox red" in text and "30 %: Is there a fox?" in text
    assert board(canvas).locator('img[src="x"], b, script').count() == 0
    assert canvas.evaluate("window.broken === undefined")
    assert canvas.errors == []


def test_the_wheel_over_what_was_said_scrolls_it_and_not_the_canvas(loop, canvas):
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    details = board(canvas).get_by_role("region")
    details.evaluate("(box) => { box.textContent = 'a line\\n'.repeat(200) }")
    details.scroll_into_view_if_needed()
    scale = canvas.evaluate("app.canvas.ds.scale")
    details.click()
    canvas.page.mouse.wheel(0, 120)
    canvas.page.wait_for_function("document.querySelector('.omnigen2-rounds [role=region]').scrollTop > 0", timeout=PATIENCE)
    assert canvas.evaluate("app.canvas.ds.scale") == scale


def test_the_keyboard_goes_from_round_to_round_and_never_reaches_the_canvas(loop, canvas):
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    canvas.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", loop)
    rounds = board(canvas).get_by_role("list").get_by_role("button")
    rounds.nth(0).focus()
    for key, at in (("ArrowRight", 1), ("ArrowRight", 1), ("Home", 0), ("End", 1), ("ArrowLeft", 0)):
        canvas.page.keyboard.press(key)
        assert rounds.nth(at).evaluate("button => button === document.activeElement"), key
    canvas.page.keyboard.press("Enter")
    assert rounds.nth(0).get_attribute("aria-pressed") == "true"
    canvas.page.keyboard.press("Delete")
    assert kept(canvas, loop) is not None, "the node is still there"


def test_rounds_go_to_the_workflow_that_drew_them_whatever_is_on_the_canvas(loop, canvas):
    """Nodes of two workflows have the same numbers: what is drawn for one must neither show in the other nor be lost."""
    canvas.evaluate(SLOWLY, [loop, 0.2, 15])
    other = canvas.workflow()
    drawing = canvas.evaluate("() => { window.drawing = app.extensionManager.workflow.activeWorkflow; return window.drawing.path }")
    canvas.evaluate("() => { window.ended = new Promise(done => app.api.addEventListener('execution_success', done, { once: true })) }")
    canvas.evaluate("app.queuePrompt(0, 1)")
    canvas.page.wait_for_function("document.querySelector('.omnigen2-rounds [role=status]').textContent.includes('…')")
    canvas.evaluate(SLOW_TO_OPEN)
    try:
        canvas.evaluate("(other) => { window.opened = app.loadGraphData(other) }", other)
        canvas.page.wait_for_function("window.nodesAreThere")
        canvas.evaluate("window.ended")
        canvas.page.wait_for_timeout(500)
        assert kept(canvas, loop) is None, "its nodes are there, and the other is still the active workflow"
    finally:
        canvas.evaluate("async () => { window.goOn(); await window.opened }")
    canvas.page.wait_for_timeout(500)
    assert canvas.evaluate("app.extensionManager.workflow.activeWorkflow.path") != drawing
    assert kept(canvas, loop) is None and board(canvas).get_by_role("status").inner_text() == "Rounds appear here as they are drawn."
    canvas.evaluate("() => app.loadGraphData(window.drawing.activeState, true, true, window.drawing)")
    canvas.page.wait_for_function(LOADED)
    assert len(kept(canvas, loop)["rounds"]) == 2
    assert board(canvas).get_by_role("status").inner_text() == "Ended: the picture is right."
    assert canvas.errors == []


def test_rounds_appear_while_the_node_runs(loop, canvas):
    canvas.evaluate("""(id) => {
        const board = app.graph.getNodeById(id).widgets.find(w => w.name === 'omnigen2_rounds').element;
        window.seen = [];
        const look = () => window.seen.push([
            board.querySelectorAll('[role=list] button').length, board.querySelector('[role=status]').textContent]);
        // Messages may come several at a time; the page's changes are told of after each.
        new MutationObserver(look).observe(board, { childList: true, subtree: true });
    }""", loop)
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    seen = canvas.evaluate("window.seen")
    assert [0, "Round 0: drawing …"] in seen and [1, "Round 1: looking at the picture …"] in seen
    assert seen[-1] == [2, "Ended: the picture is right."]


def test_a_picked_round_is_gone_on_from_in_the_next_run_and_can_be_let_go(loop, canvas):
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    board(canvas).get_by_role("button", name="Round 0, drawn").click()
    press(canvas, "Round 0: Go on from this round")
    assert canvas.evaluate(VALUE, [loop, "pick"]) == 0
    assert json.loads(canvas.evaluate(VALUE, [loop, "earlier_rounds"])) == kept(canvas, loop)
    assert labels(canvas)[0] == "Round 0 · picked, drawn, not satisfied, 0.30"

    canvas.evaluate(SCRIPT, json.dumps([RIGHT, ASKED, 0.95]))
    canvas.run()
    canvas.page.wait_for_function("() => document.querySelectorAll('.omnigen2-rounds [role=list] button').length === 3")
    made = kept(canvas, loop)
    assert (made["picked"], made["rounds"][2]["parent"], made["best"]) == (0, 0, 2)
    assert "picked" in labels(canvas)[0] and "best" in labels(canvas)[2]

    board(canvas).get_by_role("button", name="Round 0 · picked").click()
    press(canvas, "Round 0: Picked")
    assert [canvas.evaluate(VALUE, [loop, name]) for name in ("pick", "earlier_rounds")] == [-1, ""]
    assert canvas.errors == []


def test_rounds_of_another_node_that_a_hand_put_in_stay_when_one_is_picked_by_its_number(loop, canvas):
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    others = json.dumps({**kept(canvas, loop), "pictures": ["omnigen2_rounds/other_1.png", "omnigen2_rounds/other_2.png"]})
    canvas.evaluate(SET, [loop, "earlier_rounds", others])
    for number in (1, -1, 0):
        canvas.evaluate(SET, [loop, "pick", number])
        assert canvas.evaluate(VALUE, [loop, "earlier_rounds"]) == others
    assert not any("picked" in label for label in labels(canvas)), "those on the node are others"
    press(canvas, "Round 1: Go on from this round")
    assert json.loads(canvas.evaluate(VALUE, [loop, "earlier_rounds"])) == kept(canvas, loop)
    assert canvas.errors == []


def test_a_pick_in_rounds_that_the_next_run_took_from_the_node_says_so(loop, canvas):
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    picked = kept(canvas, loop)
    canvas.evaluate(SLOWLY, [loop, 0.2, 15])
    canvas.evaluate(SET, [loop, "seed", 8])
    canvas.evaluate("app.queuePrompt(0, 1)")
    press(canvas, "Round 1: Go on from this round")
    status = board(canvas).get_by_role("status")
    ended, elsewhere = "Ended: the picture is right.", "The pick counts in earlier rounds that are not shown here."
    expect(status).to_have_text(f"{ended} {elsewhere}", timeout=PATIENCE)
    assert json.loads(canvas.evaluate(VALUE, [loop, "earlier_rounds"])) == picked != kept(canvas, loop)
    canvas.evaluate(SET, [loop, "pick", -1])
    expect(status).to_have_text(ended)
    press(canvas, "Round 1: Go on from this round")
    expect(status).to_have_text(ended)
    assert json.loads(canvas.evaluate(VALUE, [loop, "earlier_rounds"])) == kept(canvas, loop)
    assert canvas.errors == []


def test_rounds_and_the_pick_survive_saving_and_loading(loop, canvas):
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    press(canvas, "Round 1: Go on from this round")
    before, shown, prompt = kept(canvas, loop), labels(canvas), canvas.prompt()
    saved = json.loads(json.dumps(canvas.workflow()))
    canvas.reset()
    expect(board(canvas)).to_have_count(0, timeout=PATIENCE)
    canvas.load(saved)
    canvas.page.wait_for_function(LOADED)
    assert kept(canvas, loop) == before and labels(canvas) == shown
    assert canvas.prompt() == prompt
    assert "omnigen2_rounds" not in prompt[str(loop)]["inputs"]
    assert canvas.errors == []


def test_a_copied_node_has_the_rounds(loop, canvas):
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    before = kept(canvas, loop)
    canvas.evaluate("""(id) => {
        app.canvas.deselectAll();
        app.canvas.selectNode(app.graph.getNodeById(id));
        app.canvas.copyToClipboard();
        app.canvas.pasteFromClipboard();
    }""", loop)
    expect(canvas.page.locator(".omnigen2-rounds [role=list] button")).to_have_count(4, timeout=PATIENCE)
    copies = canvas.evaluate("app.graph.nodes.filter(n => n.type === 'OmniGen2ReflectionLoop').map(n => n.id)")
    assert len(copies) == 2
    assert [kept(canvas, node) for node in copies] == [before, before]


def test_undo_takes_back_what_the_user_did_and_not_the_rounds(loop, canvas):
    def undo(way: str) -> None:
        canvas.evaluate(f"async () => {{ await app.extensionManager.workflow.activeWorkflow.changeTracker.{way}() }}")
        shown = "(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'omnigen2_rounds').element.isConnected"
        canvas.page.wait_for_function(shown, arg=loop)
        canvas.page.wait_for_timeout(500)

    set_width = "([id, value]) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'width').value = value }"
    canvas.evaluate(STATE)
    canvas.evaluate(set_width, [loop, 80])
    canvas.evaluate(STATE)
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    made = kept(canvas, loop)
    press(canvas, "Round 1: Go on from this round")
    assert canvas.evaluate(VALUE, [loop, "pick"]) == 1

    undo("undo")
    assert canvas.evaluate(VALUE, [loop, "pick"]) == -1 and kept(canvas, loop) == made
    assert "picked" not in labels(canvas)[1]
    undo("undo")
    assert canvas.evaluate(VALUE, [loop, "width"]) == 64 and kept(canvas, loop) == made
    assert len(labels(canvas)) == 2
    undo("redo")
    undo("redo")
    assert [canvas.evaluate(VALUE, [loop, name]) for name in ("width", "pick")] == [80, 1] and kept(canvas, loop) == made
    assert "picked" in labels(canvas)[1]
    # What is shown is the node that is there now, and not the one before the undoing.
    press(canvas, "Round 1: Picked")
    assert canvas.evaluate(VALUE, [loop, "pick"]) == -1 and "picked" not in labels(canvas)[1]
    assert canvas.errors == []


def test_rounds_that_come_while_undo_takes_something_back_are_no_step_of_their_own(loop, canvas):
    canvas.evaluate(SLOWLY, [loop, 0.2, 15])
    canvas.evaluate(STATE)
    canvas.evaluate("([id, value]) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'width').value = value }", [loop, 80])
    canvas.evaluate(STATE)
    canvas.evaluate("() => { window.ended = new Promise(done => app.api.addEventListener('execution_success', done, { once: true })) }")
    canvas.evaluate("app.queuePrompt(0, 1)")
    canvas.page.wait_for_function("document.querySelector('.omnigen2-rounds [role=status]').textContent.includes('…')")
    canvas.evaluate(SLOW_TO_OPEN)
    try:
        canvas.evaluate("() => { window.opened = app.extensionManager.workflow.activeWorkflow.changeTracker.undo() }")
        canvas.page.wait_for_function("window.nodesAreThere")
        canvas.evaluate("window.ended")
    finally:
        canvas.evaluate("async () => { window.goOn(); await window.opened }")
    canvas.page.wait_for_function(LOADED)
    canvas.evaluate(STATE)
    assert canvas.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.redoQueue.length") == 1
    assert canvas.evaluate(VALUE, [loop, "width"]) == 64 and len(kept(canvas, loop)["rounds"]) == 2
    assert canvas.errors == []


def test_best_of_n_shows_scores_and_has_nothing_to_pick(folder, canvas):
    add_board(canvas, folder, [ASKED, 0.3, 0.9], "OmniGen2BestOfN")
    assert board(canvas).get_by_role("status").inner_text() == "Pictures appear here as they are drawn."
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    assert labels(canvas) == ["Picture 1, drawn, 0.30", "Picture 2 · best, drawn, 0.90"]
    assert board(canvas).get_attribute("aria-label") == "Pictures"
    assert "Picture 2" in board(canvas).get_by_role("region", name="What was said of the picture").inner_text()
    assert board(canvas).locator(".pick").is_hidden()
    assert canvas.errors == []


def test_of_a_list_the_pictures_of_its_last_item_stay_on_the_node(folder, canvas):
    node = add_board(canvas, folder, [ASKED, 0.3, 0.9, ASKED, 0.8, 0.5], "OmniGen2BestOfN")
    canvas.evaluate(LISTED, [node])
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    assert labels(canvas) == ["Picture 1 · best, drawn, 0.80", "Picture 2, drawn, 0.50"]
    assert canvas.errors == []


@pytest.mark.parametrize(("answer", "shown", "reason"), [("", "(nothing)", "it was empty"), (KOREAN, KOREAN, "not in English")], ids=["empty", "another language"])
def test_a_reflection_that_cannot_be_used_is_shown_as_no_opinion_with_what_was_written(folder, canvas, answer, shown, reason):
    add_board(canvas, folder, [answer, answer, ASKED, 0.6])
    canvas.run()
    canvas.page.wait_for_function(LOADED)
    assert labels(canvas) == ["Round 0 · best, drawn, no opinion, 0.60"]
    assert board(canvas).get_by_role("status").inner_text() == "Ended: there was no usable reflection."
    said = board(canvas).get_by_role("region", name="What was said of the round").inner_text()
    assert reason in said and said.count(f"Answer of the model: {shown}") == 2
    assert reason in canvas.page.get_by_role("status", name="Notes of the last run").inner_text()
    assert canvas.errors == []


CANCEL_IN_ROUND = """async (round) => {
    let drawing = false, asked = false, reached = 0;
    const ended = new Promise(resolve => {
        for (const kind of ['execution_interrupted', 'execution_success', 'execution_error'])
            app.api.addEventListener(kind, () => resolve(kind), {once: true});
    });
    app.api.addEventListener('omnigen2.rounds', ({detail}) => { drawing = detail.stage === 'draw' && detail.round === round });
    app.api.addEventListener('progress', ({detail}) => {
        if (!drawing) return;
        reached = detail.value;
        if (asked) return;
        asked = true;
        window.during = document.querySelector('.omnigen2-rounds [role=status]').textContent;
        app.extensionManager.command.execute('Comfy.Interrupt');
    });
    await app.queuePrompt(0, 1);
    return [await ended, reached, window.during];
}"""


def test_cancelling_in_the_middle_of_the_second_picture_keeps_the_first_on_the_node(loop, canvas):
    canvas.evaluate(SLOWLY, [loop, 0.2, 20])
    ended, reached, during = canvas.evaluate(CANCEL_IN_ROUND, 1)
    assert (ended, during) == ("execution_interrupted", "Round 1: drawing …") and reached < 20
    assert labels(canvas) == ["Round 0 · best, drawn, not satisfied, 0.30"]
    assert board(canvas).get_by_role("status").inner_text() == "Stopped before the end; what was finished is kept."
    left = kept(canvas, loop)
    # What is kept can be gone on from.
    press(canvas, "Round 0: Go on from this round")
    canvas.evaluate(SCRIPT, json.dumps([RIGHT, ASKED, 0.95]))
    canvas.run()
    canvas.page.wait_for_function("() => document.querySelectorAll('.omnigen2-rounds [role=list] button').length === 2")
    made = kept(canvas, loop)
    assert made["rounds"][0] == left["rounds"][0] and made["rounds"][1]["parent"] == 0
    assert canvas.errors == []


@pytest.mark.parametrize(
    ("locale", "rounds", "pictures"),
    [("ko", "그리는 대로 라운드가 여기에 나타납니다.", "그리는 대로 그림이 여기에 나타납니다."), ("zh", "各轮画出后显示在这里。", "各图像画出后显示在这里。")],
)
def test_the_board_speaks_the_user_s_language(open_canvas, locale, rounds, pictures):
    canvas = open_canvas(locale=locale)
    for kind, words in (("OmniGen2ReflectionLoop", rounds), ("OmniGen2BestOfN", pictures)):
        canvas.clear()
        canvas.add_node(kind)
        expect(board(canvas).get_by_role("status")).to_have_text(words, timeout=PATIENCE)


@pytest.mark.parametrize("rounds", [7, {"format": "omnigen2.reflection", "rounds": [None], "pictures": []}, {
    "format": "omnigen2.reflection", "rounds": [{"reflection": {"verdict": HOSTILE, "answers": 3}, "score": "x"}], "pictures": [{}], "stop": HOSTILE}],
    ids=["no rounds", "empty round", "wrong kinds"])
def test_a_workflow_with_damaged_rounds_loads_and_nothing_of_it_becomes_html(canvas, rounds):
    node = canvas.add_node("OmniGen2ReflectionLoop")
    canvas.page.wait_for_timeout(300)
    saved = canvas.workflow()
    saved["nodes"][0]["properties"]["omnigen2_rounds"] = rounds
    canvas.load(saved)
    expect(board(canvas)).to_have_count(1, timeout=PATIENCE)
    assert board(canvas).locator('img[src="x"], b, script').count() == 0
    assert canvas.evaluate("window.broken === undefined") and canvas.prompt()[str(node)]
    assert [line for line in canvas.errors if "/view" not in line] == []
