"""Help pages and translated nodes, as the real frontend shows them."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from browser_harness import Canvas

DOCS = Path(__file__).resolve().parent.parent.parent / "web" / "docs"
NODES = sorted(file.stem for file in DOCS.glob("*.md"))

PICTURES_LOADED = """() => {
    const pictures = [...document.querySelectorAll('.node-help-content img')];
    return pictures.length > 0 && pictures.every(picture => picture.naturalWidth > 100);
}"""


def title(page: str) -> str:
    return re.search(r"^# (.+)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)[1]


def shown_help(canvas, node: str) -> str:
    """The text of the help panel, once its pictures are there; an error if they do not come."""
    canvas.help_text(node)
    canvas.page.wait_for_function(PICTURES_LOADED, timeout=60_000)
    return canvas.page.locator(".node-help-content").first.inner_text()


@pytest.fixture(scope="module")
def english_canvas(browser, server):
    opened = Canvas(browser, server)
    yield opened
    opened.close()


@pytest.mark.parametrize("node", NODES)
def test_the_help_panel_shows_the_page_and_its_picture(english_canvas, node):
    text = shown_help(english_canvas, node)
    assert title(f"{node}.md") in text and "When to use it" in text
    assert english_canvas.errors == []


@pytest.mark.parametrize("locale", ["ko", "zh"])
def test_a_korean_or_chinese_user_reads_their_own_language(open_canvas, locale):
    """Name of the node, names of inputs and outputs, and the help page, in Nodes 2.0 and on the classic canvas."""
    for vue in (False, True):
        canvas = open_canvas(vue=vue, locale=locale)
        node = canvas.add_node("OmniGen2Sample")
        name, inputs, widgets, outputs = canvas.evaluate("""(id) => {
            const node = app.graph.getNodeById(id);
            return [node.title, node.inputs.map(i => i.localized_name), node.widgets.map(w => w.label), node.outputs.map(o => o.localized_name)];
        }""", node)
        ours = canvas.server.get("/i18n")[locale]["nodeDefs"]["OmniGen2Sample"]
        assert name == ours["display_name"]
        assert {ours["inputs"][key]["name"] for key in ("positive", "negative_ref", "latent")} <= set(inputs)
        assert {ours["inputs"][key]["name"] for key in ("solver", "image_guidance", "guidance_end", "shift", "seed")} <= set(widgets)
        assert outputs == [ours["outputs"]["0"]["name"]]
    assert title(f"OmniGen2Encode/{locale}.md") in shown_help(canvas, "OmniGen2Encode")
    assert canvas.errors == []
