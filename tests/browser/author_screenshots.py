"""Make the README's screenshots of a chat and of a reflection, in `web/docs/images/`, from the templates to try.

    python tests/browser/author_screenshots.py

The templates are opened, run and talked with as a user would, so what is shown is what the built-in model gives. Run it
with the Python that `python dev.py test` has prepared, after new weights or another template.
"""
from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "browser")]

from author_docs import BADGE, IMAGES, save  # noqa: E402
from browser_harness import Canvas, launch  # noqa: E402
from built_in_choices import CHAT_EDIT, CHAT_QUESTION  # noqa: E402
from harness import Server  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402

LARGEST = 60_000
"""Bytes of a screenshot."""
TALK_HEIGHT = 600
"""Pixels in which a conversation with three small pictures is read without scrolling."""
MARGIN, BELOW = 14, 66
"""Pixels around what is shown, and those of a chat below its field for messages."""

SET = """([type, values]) => {
    const node = app.graph.nodes.find(n => n.type === type);
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
}"""
RESIZE = """([type, more]) => {
    const node = app.graph.nodes.find(n => n.type === type);
    node.setSize([node.size[0], node.computeSize()[1] + more]);
}"""
LOADED = """() => [...document.querySelectorAll('[role="log"] img, .omnigen2-rounds img')].every(image => image.complete && image.naturalWidth > 0)"""
FRAME = """(type) => {
    app.canvas.background_image = null;
    app.canvas.show_info = false;
    app.canvas.ds.scale = 1;
    const node = app.graph.nodes.find(n => n.type === type);
    app.canvas.ds.offset = [120 - node.pos[0], 140 - node.pos[1]];
    app.canvas.setDirty(true, true);
}"""
AREA = """(type) => {
    const shown = app.graph.nodes.filter(n => [type, 'ImageScaleBy', 'PreviewImage'].includes(n.type)), [x0, y0] = app.canvas.ds.offset;
    const page = app.canvas.canvas.getBoundingClientRect();
    const boxes = shown.map(node => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        if (element) return element.getBoundingClientRect();
        const [x, y, width, height] = node.getBounding();
        return new DOMRect(x + x0 + page.left, y + y0 + page.top, width, height);
    });
    const left = Math.min(...boxes.map(b => b.left)), top = Math.min(...boxes.map(b => b.top));
    return [left, top, Math.max(...boxes.map(b => b.right)), Math.max(...boxes.map(b => b.bottom))];
}"""
FIELD_END = """() => document.querySelector('[data-omnigen2-chat="composer"]').getBoundingClientRect().bottom"""


def chat(browser: Browser, server: Server) -> Image.Image:
    """A picture that is drawn, a question about it, and a change to it; without the settings at the node's lower end."""
    canvas = opened(browser, server, "Try-it-chat", vue=False)
    canvas.run()
    for message, show_last_picture, _ in (CHAT_QUESTION, CHAT_EDIT):
        canvas.evaluate(SET, ["OmniGen2Chat", {"message": message, "show_last_picture": show_last_picture}])
        canvas.run()
    canvas.evaluate(RESIZE, ["OmniGen2Chat", TALK_HEIGHT - 260])
    left, top, right, _ = framed(canvas, "OmniGen2Chat")
    return taken(canvas, left, top, right, canvas.evaluate(FIELD_END) + BELOW)


def reflection(browser: Browser, server: Server) -> Image.Image:
    """The rounds, with what was said of the first one. In Nodes 2.0, which folds away what is seldom changed."""
    canvas = opened(browser, server, "Try-it-reflect-until-right", vue=True)
    canvas.evaluate(SET, ["OmniGen2ReflectionLoop", {"control_after_generate": "fixed"}])
    canvas.run()
    canvas.page.locator(".omnigen2-rounds [role=list] button").first.click()
    canvas.page.mouse.move(0, 0)
    canvas.evaluate(RESIZE, ["OmniGen2ReflectionLoop", 0])
    return taken(canvas, *framed(canvas, "OmniGen2ReflectionLoop"))


def opened(browser: Browser, server: Server, name: str, vue: bool) -> Canvas:
    canvas = Canvas(browser, server, vue=vue, width=1500, height=1500)
    canvas.load(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    return canvas


def framed(canvas: Canvas, node_type: str) -> list[float]:
    """Left, top, right and bottom of a node and the pictures beside it, moved into view."""
    canvas.evaluate(FRAME, node_type)
    canvas.page.wait_for_function(LOADED)
    canvas.page.wait_for_timeout(1500)
    return canvas.evaluate(AREA, node_type)


def taken(canvas: Canvas, left: float, top: float, right: float, bottom: float) -> Image.Image:
    clip = {"x": left - MARGIN, "y": top - BADGE, "width": right - left + 2 * MARGIN, "height": bottom - top + BADGE}
    shot = Image.open(io.BytesIO(canvas.page.screenshot(clip=clip))).convert("RGB")
    canvas.close()
    return shot


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, sync_playwright() as playwright:
        browser = launch(playwright)
        for make in (chat, reflection):
            save(make(browser, server), IMAGES / f"screenshot-{make.__name__}.png", LARGEST)
            print(make.__name__)
        browser.close()


if __name__ == "__main__":
    main()
