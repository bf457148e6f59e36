"""The notes that a node shows on itself after a run."""
from __future__ import annotations

import json

from playwright.sync_api import expect

from browser_harness import PATIENCE
from harness import ROOT

HOSTILE = '<img src="x" onerror="window.broken = true"><b>bold</b><script>window.broken = true</script> 图 & "quotes"'

SHOW = """([id, notes]) => app.api.dispatchCustomEvent('executed', {
    node: String(id), display_node: String(id), prompt_id: 'none', output: {omnigen2_notes: notes},
})"""
STATUS = """(id) => [...(app.graph.getNodeById(id).widgets.find(w => w.name === 'omnigen2_notes')?.element.children ?? [])].map(line => line.textContent)"""


def notes(canvas, node: int) -> list[str]:
    """The lines of a node's notes."""
    return canvas.evaluate(STATUS, node)


def test_notes_are_shown_as_text_and_never_as_html(canvas):
    node = canvas.add_node("OmniGen2Encode")
    canvas.evaluate(SHOW, [node, [HOSTILE, "A second note."]])
    assert notes(canvas, node) == [HOSTILE, "A second note."]
    shown = canvas.page.get_by_role("status", name="Notes of the last run")
    expect(shown).to_be_visible(timeout=PATIENCE)
    assert shown.inner_text().splitlines() == [HOSTILE, "A second note."]
    assert shown.locator("img, b, script").count() == 0
    assert canvas.evaluate("window.broken === undefined")
    assert canvas.errors == []


def test_notes_make_room_below_the_widgets_and_go_away_with_the_next_run(canvas):
    node = canvas.add_node("OmniGen2Encode")
    canvas.page.wait_for_timeout(300)
    before = canvas.evaluate("(id) => app.graph.getNodeById(id).size[1]", node)
    canvas.evaluate(SHOW, [node, ["The size 100x96 became 96x96, because sides are multiples of 16."] * 4])
    canvas.page.wait_for_function("([id, before]) => app.graph.getNodeById(id).size[1] > before", arg=[node, before])
    canvas.evaluate(SHOW, [node, []])
    assert notes(canvas, node) == []
    expect(canvas.page.get_by_role("status", name="Notes of the last run")).to_have_count(0, timeout=PATIENCE)


def test_what_a_run_cost_stands_below_the_notes(canvas):
    node = canvas.add_node("OmniGen2Sample")
    cost = "36 evaluations: 8 in full, 16 of the picture's tokens alone, 12 skipped · 3.1 s"
    canvas.evaluate(
        """([id, notes, readout]) => app.api.dispatchCustomEvent('executed', {
            node: String(id), display_node: String(id), prompt_id: 'none',
            output: {omnigen2_notes: notes, omnigen2_readout: readout},
        })""", [node, ["A note."], [cost]],
    )
    canvas.page.wait_for_timeout(300)
    assert notes(canvas, node) == ["A note.", cost]
    assert canvas.errors == []


def test_the_methods_of_a_custom_acceleration_are_sent_with_the_prompt(canvas):
    node = canvas.add_node("OmniGen2Accelerate")
    canvas.page.wait_for_timeout(300)
    assert canvas.prompt()[str(node)]["inputs"]["preset"] == "exact"
    canvas.evaluate(
        """(id) => {
            const widget = app.graph.getNodeById(id).widgets.find(w => w.name === 'preset');
            widget.value = 'custom';
            widget.callback?.('custom');
        }""", node,
    )
    canvas.page.wait_for_timeout(300)
    sent = canvas.prompt()[str(node)]["inputs"]
    assert {name for name in sent if name.startswith("preset.")} == {
        "preset.context_refresh", "preset.guidance_every", "preset.disagreement", "preset.first_block",
        "preset.teacache", "preset.taylorseer",
    }  # fmt: skip


def test_a_run_shows_its_notes_and_saves_none_of_them(canvas):
    """A prompt that names none of two references, on the encode node of the last step."""
    workflow = json.loads((ROOT / "workflows/Try-it-in-context-two-references.json").read_text(encoding="utf-8"))
    canvas.load(workflow)
    encode = max(node["id"] for node in workflow["nodes"] if node["type"] == "OmniGen2Encode")
    canvas.evaluate("""(id) => {
        app.graph.getNodeById(id).widgets.find(w => w.name === 'prompt').value = 'a green background';
        for (const node of app.graph.nodes.filter(n => n.type === 'OmniGen2Sample')) node.widgets.find(w => w.name === 'steps').value = 1;
    }""", encode)
    saved = next(node for node in canvas.workflow()["nodes"] if node["id"] == encode)
    # A node whose result the server still has from another page's run does not run, and so says nothing.
    canvas.server.free()
    canvas.run()
    assert any("names none of them" in note for note in notes(canvas, encode))
    after = next(node for node in canvas.workflow()["nodes"] if node["id"] == encode)
    assert after["widgets_values"] == saved["widgets_values"]
    assert canvas.errors == []
