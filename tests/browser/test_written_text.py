"""What the encoder writes, as the page shows it: while it is written, and in the field where it can be edited."""
from __future__ import annotations

import pytest

from small_models import install_folder

# What would be a picture, a link or bold on a page that reads it as HTML or as Markdown.
HOSTILE = '<img src="x" onerror="window.broken = true"> ![a](http://x.y/z.png) [b](http://x.y) **fox** <b>&amp;</b>'

MAKE = """([folder, text]) => {
    const [loader, writer, enhance] = ['OmniGen2LoadFolder', 'TestWrites', 'OmniGen2EnhancePrompt'].map((type, i) => {
        const node = LiteGraph.createNode(type);
        node.pos = [100 + 350 * i, 100];
        app.graph.add(node);
        return node;
    });
    const set = (node, name, value) => { node.widgets.find(w => w.name === name).value = value };
    set(loader, 'folder', folder);
    set(writer, 'text', text);
    set(enhance, 'prompt', 'a fox');
    loader.connect(1, writer, 0);
    writer.connect(0, enhance, 0);
    return enhance.id;
}"""
PRESS = "(id) => app.graph.getNodeById(id).widgets.find(w => w.type === 'button').callback()"
EDITED = "(id) => app.graph.getNodeById(id).widgets.find(w => w.name === 'edited').value"


@pytest.fixture
def folder(server, golden):
    return install_folder(server.models, golden)


def test_written_text_is_shown_as_characters_and_can_be_edited(folder, canvas):
    node = canvas.evaluate(MAKE, [folder, HOSTILE])
    canvas.evaluate(PRESS, node)
    assert canvas.evaluate(EDITED, node) == ""
    canvas.run()
    canvas.page.get_by_text(HOSTILE, exact=True).first.wait_for(timeout=60_000)
    assert canvas.page.locator('img[src="x"], img[src*="x.y"], a[href*="x.y"]').count() == 0
    assert canvas.evaluate("window.broken === undefined")
    canvas.evaluate(PRESS, node)
    assert canvas.evaluate(EDITED, node) == HOSTILE
    saved = canvas.workflow()
    canvas.reset()
    canvas.load(saved)
    assert canvas.evaluate(EDITED, node) == HOSTILE
    assert canvas.prompt()[str(node)]["inputs"]["edited"] == HOSTILE
    assert canvas.prompt()[str(node)]["inputs"]["max_length"] == 320
    assert canvas.errors == []
