"""OmniGen2 Reflection Loop and OmniGen2 Best of N on a canvas, with an encoder that says what a test tells it to."""

from __future__ import annotations

import json

# What would be a picture or a script on a page that reads it as HTML.
HOSTILE = '<img src="x" onerror="window.broken = true"><b>red</b><script>window.broken = true</script> &amp; 여우'
RIGHT = "VERDICT: RIGHT\nPROBLEM: NONE\nKIND: NONE\nFIX: NONE"
WRONG = f"VERDICT: WRONG\nPROBLEM: the fox is {HOSTILE}\nKIND: ATTRIBUTE\nFIX: Make the fox red"
ASKED = "Is there a fox?"
TWO_ROUNDS = [WRONG, ASKED, 0.3, RIGHT, 0.9]
MAKE = """([folder, script, type]) => {
    const [loader, script_node, drawing] = ['OmniGen2LoadFolder', 'TestReflects', type].map((kind, i) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [60 + 330 * i, 80];
        app.graph.add(node);
        return node;
    });
    const set = (node, values) => Object.entries(values).forEach(([name, value]) => { node.widgets.find(w => w.name === name).value = value });
    set(loader, {folder, dtype: 'fp32'});
    set(script_node, {script});
    set(drawing, {prompt: 'a fox in the snow', negative_prompt: '', width: 64, height: 64, seed: 7, control_after_generate: 'fixed', steps: 1, text_guidance: 1});
    if (type === 'OmniGen2ReflectionLoop') set(drawing, {reflect_by: 'prompted'});
    else set(drawing, {count: 2});
    loader.connect(0, drawing, drawing.findInputSlot('model'));
    loader.connect(1, script_node, 0);
    script_node.connect(0, drawing, drawing.findInputSlot('clip'));
    loader.connect(2, drawing, drawing.findInputSlot('vae'));
    app.canvas.ds.scale = 0.8;
    app.canvas.ds.offset = [0, 0];
    return drawing.id;
}"""
SLOWLY = """([id, seconds, steps]) => {
    const loop = app.graph.getNodeById(id), slow = LiteGraph.createNode('TestSlowModel');
    slow.pos = [60, 400];
    app.graph.add(slow);
    slow.widgets.find(w => w.name === 'seconds').value = seconds;
    app.graph.nodes.find(n => n.type === 'OmniGen2LoadFolder').connect(0, slow, 0);
    slow.connect(0, loop, loop.findInputSlot('model'));
    loop.widgets.find(w => w.name === 'steps').value = steps;
}"""
KEPT = "(id) => app.graph.getNodeById(id)?.properties.omnigen2_rounds ?? null"
LOADED = """() => {
    const images = [...document.querySelectorAll('.omnigen2-rounds img')];
    return images.length > 0 && images.every(image => image.complete && image.naturalWidth > 0);
}"""


def add_board(canvas, folder: str, script=TWO_ROUNDS, kind: str = "OmniGen2ReflectionLoop") -> int:
    """A node of this kind, whose encoder says that the first picture is wrong and the second right unless told otherwise."""
    return canvas.evaluate(MAKE, [folder, json.dumps(script), kind])


def board(canvas):
    return canvas.page.locator(".omnigen2-rounds")


def labels(canvas) -> list[str]:
    """The rounds that are shown, by their names for screen readers."""
    return [button.get_attribute("aria-label") for button in board(canvas).get_by_role("list").get_by_role("button").all()]


def kept(canvas, node: int) -> dict:
    return canvas.evaluate(KEPT, node)


def press(canvas, name: str) -> None:
    """Presses a button of the board by the keyboard."""
    button = board(canvas).get_by_role("button", name=name)
    button.focus()
    canvas.page.keyboard.press("Enter")
