"""What people do on the canvas besides pressing Run once: queueing, cancelling, bypassing."""
from __future__ import annotations

import json

import numpy as np
import pytest

from harness import ROOT, Refused

BYPASSED = 4


def text_to_image() -> dict:
    return json.loads((ROOT / "workflows/Try-it-text-to-image.json").read_text(encoding="utf-8"))


def edit() -> dict:
    return json.loads((ROOT / "workflows/Try-it-edit.json").read_text(encoding="utf-8"))


def set_widgets(canvas, node_type: str, **values) -> None:
    canvas.evaluate("""([type, values]) => {
        for (const node of app.graph.nodes.filter(n => n.type === type))
            for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
    }""", [node_type, values])


@pytest.fixture
def canvas(canvas):
    yield canvas
    canvas.server.interrupt()


def test_two_prompts_queued_at_once_both_give_their_picture(canvas):
    """The seed is drawn anew between them, so they differ."""
    canvas.load(text_to_image())
    set_widgets(canvas, "OmniGen2Sample", steps=4)
    ids = canvas.evaluate("""async () => {
        const ids = [];
        app.api.addEventListener('execution_start', event => ids.push(event.detail.prompt_id));
        await app.queuePrompt(0, 2);
        for (let i = 0; i < 1200 && ids.length < 2; i++) await new Promise(resolve => setTimeout(resolve, 100));
        return ids;
    }""")
    assert len(set(ids)) == 2
    runs = [canvas.server.wait(prompt) for prompt in ids]
    assert [run["status"]["status_str"] for run in runs] == ["success", "success"]
    seeds = [next(node["inputs"]["seed"] for node in run["prompt"][2].values() if "seed" in node["inputs"]) for run in runs]
    assert seeds[0] != seeds[1]
    assert canvas.errors == []


def test_a_run_cancelled_half_way_stops_and_the_next_one_is_right(canvas):
    canvas.load(text_to_image())
    set_widgets(canvas, "OmniGen2Sample", steps=1000, control_after_generate="fixed")
    reached = canvas.evaluate("""async () => {
        let reached = 0, asked = false;
        const ended = new Promise(resolve => {
            app.api.addEventListener('execution_interrupted', () => resolve(true), {once: true});
            app.api.addEventListener('execution_success', () => resolve(false), {once: true});
        });
        app.api.addEventListener('progress', event => {
            if (event.detail.max !== 1000) return;
            reached = event.detail.value;
            if (reached < 3 || asked) return;
            asked = true;
            app.extensionManager.command.execute('Comfy.Interrupt');
        });
        await app.queuePrompt(0, 1);
        return await ended && reached;
    }""")
    assert reached is not False, "the run was not cancelled"
    assert 3 <= reached < 100
    set_widgets(canvas, "OmniGen2Sample", steps=4)
    after = canvas.run()
    canvas.server.free()
    fresh = canvas.run()
    # Not bit for bit: a library's matrix products may round otherwise where memory lies otherwise.
    first, second = (sorted(canvas.images(run), key=lambda image: image.size) for run in (after, fresh))
    for one, other in zip(first, second, strict=True):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 2
    assert canvas.errors == []


def test_every_node_can_be_bypassed(canvas):
    """One at a time: what still has its inputs runs, and only where nothing has is the prompt refused; nothing crashes."""
    workflow = edit()
    outcomes = {}
    for number, node in enumerate(workflow["nodes"]):
        changed = edit()
        changed["nodes"][number]["mode"] = BYPASSED
        canvas.load(changed)
        set_widgets(canvas, "OmniGen2Sample", steps=1)
        prompt = canvas.prompt()
        assert str(node["id"]) not in prompt
        outcomes[node["type"], node["id"]] = outcome(canvas.server, prompt)
    assert canvas.errors == []
    refused = [node_type for (node_type, _), what in outcomes.items() if what == "refused"]
    assert refused == ["OmniGen2LoadFolder", "OmniGen2Encode"], outcomes


def test_all_nodes_bypassed_leaves_nothing_to_run(canvas):
    workflow = edit()
    for node in workflow["nodes"]:
        node["mode"] = BYPASSED
    canvas.load(workflow)
    assert canvas.prompt() == {}
    assert canvas.errors == []


def outcome(server, prompt: dict) -> str:
    try:
        result = server.run(prompt, check=False)
    except Refused as refusal:
        assert refusal.node_errors
        return "refused"
    assert result.status == "success", result.error
    return "ran"
