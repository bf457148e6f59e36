"""The browser fixture itself, with core nodes: what the other browser tests rely on."""
from __future__ import annotations

import re

import pytest

from browser_harness import PATIENCE, SCRIPTS
from playwright.sync_api import expect


def picture_workflow(canvas) -> dict:
    source, target = canvas.add_node("EmptyImage"), canvas.add_node("SaveImage", x=700)
    canvas.evaluate("([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 0)", [source, target])
    canvas.evaluate("(id) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'color').value = 0x00ff00 }", source)
    return canvas.workflow()


def test_each_mode_is_the_one_asked_for(canvas, request):
    assert canvas.evaluate("LiteGraph.vueNodesMode") is ("nodes-2.0" in request.node.name)


def test_a_workflow_loads_runs_and_gives_its_picture(canvas):
    workflow = picture_workflow(canvas)
    canvas.clear()
    canvas.load(workflow)
    assert sorted(node["class_type"] for node in canvas.prompt().values()) == ["EmptyImage", "SaveImage"]
    assert canvas.missing_nodes() == []
    picture, = canvas.images(canvas.run())
    assert picture.getpixel((5, 5)) == (0, 255, 0)


def test_a_missing_node_is_found(canvas):
    workflow = picture_workflow(canvas)
    workflow["nodes"][0]["type"] = "NoSuchNode"
    canvas.load(workflow)
    assert canvas.missing_nodes() == ["NoSuchNode"]


def test_the_help_panel_of_a_core_node_is_read(open_canvas):
    canvas = open_canvas()
    canvas.help_text("EmptyImage")
    expect(canvas.page.locator(".node-help-content").first).to_contain_text(re.compile("Empty ?Image"), timeout=PATIENCE)


def test_an_error_of_the_pack_in_the_console_is_seen(canvas):
    assert canvas.errors == []
    with canvas.page.expect_console_message():
        canvas.evaluate("() => { console.error('OmniGen2 broke') }")
    assert len(canvas.errors) == 1


@pytest.mark.parametrize("script", ["null.shown", "Promise.reject(new TypeError('see https://example.com'))"], ids=["thrown", "rejected"])
def test_an_exception_in_one_of_our_scripts_is_ours_though_its_message_names_nobody(canvas, script):
    throw_at(canvas, f"{SCRIPTS}broken.js", script)
    [error] = canvas.errors
    assert "TypeError" in error and "broken.js:1" in error


def test_an_exception_in_the_script_of_another_pack_is_not_ours(canvas):
    throw_at(canvas, "/extensions/SomePack/js/broken.js", "null.shown")
    assert canvas.errors == [] and any("null" in line for line in canvas.console)


def throw_at(canvas, address: str, script: str) -> None:
    """Have the page run a script that the server seems to have at this address."""
    canvas.page.route(f"**{address}", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    with canvas.page.expect_event("pageerror"):
        canvas.page.add_script_tag(url=address)
    canvas.page.unroute(f"**{address}")
