"""What people do on the canvas besides pressing Run once: queueing, cancelling, bypassing."""
from __future__ import annotations

import json
import urllib.error
import uuid

import numpy as np
import pytest

from author import build
from canvas_graph import Graph, Row
from harness import PACK_NAME, ROOT
from template_parts import built_in_parts, encode

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
    assert 3 <= reached < 1000
    set_widgets(canvas, "OmniGen2Sample", steps=4)
    after = canvas.run()
    canvas.server.free()
    fresh = canvas.run()
    # Not bit for bit: a library's matrix products may round otherwise where memory lies otherwise.
    first, second = (sorted(canvas.images(run), key=lambda image: image.size) for run in (after, fresh))
    for one, other in zip(first, second, strict=True):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 2
    assert canvas.errors == []


BYPASS_EACH = """async () => {
    const prompts = [];
    for (const node of app.graph.nodes.filter(node => node.type.startsWith('OmniGen2'))) {
        node.mode = 4;
        prompts.push([String(node.id), node.type, (await app.graphToPrompt()).output]);
        node.mode = 0;
    }
    return prompts;
}"""
GRAPHS = ["Try-it-edit", "Try-it-LoRA", "Try-it-accelerate", "Try-it-ask-about-a-picture", "Try-it-chat", "Try-it-reflect-until-right",
          "Try-it-best-of-four", "OmniGen2-text-to-image", "custom"]  # fmt: skip
HANDED_ON = {"OmniGen2Sample", "OmniGen2LoadLoRA", "OmniGen2Accelerate", "OmniGen2Compile", "OmniGen2EnhancePrompt", "OmniGen2Ask"}
"""Nodes without which a graph still runs: they have an input of their output's type, or the next node a value of its own."""


def custom_sampling() -> Graph:
    """The nodes of the pack that no template holds, in one graph."""
    graph = Graph("custom")
    parts = built_in_parts(graph)
    model = graph.add("OmniGen2Compile", model=parts.model)["model"]
    enhanced = graph.add("OmniGen2EnhancePrompt", clip=parts.clip, prompt="a red circle")
    encoded = encode(graph, parts, "", width=64, height=64)
    encoded.values.pop("prompt")
    encoded.links["prompt"] = enhanced["prompt"]
    guider = graph.add("OmniGen2Guider", model=model, positive=encoded["positive"], negative_ref=encoded["negative_ref"], negative=encoded["negative"])
    sigmas = graph.add("OmniGen2Sigmas", model=model, latent=encoded["latent"])
    sampled = graph.add("SamplerCustomAdvanced", noise=graph.add("RandomNoise")["NOISE"], sampler=graph.add("KSamplerSelect")["SAMPLER"],
                        guider=guider["guider"], sigmas=sigmas["sigmas"], latent_image=encoded["latent"])  # fmt: skip
    decoded = graph.add("VAEDecode", samples=sampled["output"], vae=parts.vae)
    graph.add("PreviewImage", images=decoded["IMAGE"])
    graph.layout = Row(*graph.nodes)
    return graph


def open_graph(canvas, name: str) -> None:
    if name == "custom":
        build(canvas, custom_sampling())
    else:
        canvas.load(json.loads((ROOT / f"workflows/{name}.json").read_text(encoding="utf-8")))


def test_every_node_of_the_pack_can_be_bypassed(canvas):
    """One at a time, the server says where something lacks an input; where nothing does, the graph runs without them all.

    Each kind of node is tried in the first graph that has it.
    """
    seen = set()
    for name in GRAPHS:
        open_graph(canvas, name)
        bypassed = [found for found in canvas.evaluate(BYPASS_EACH) if found[1] not in seen]
        handed_on = []
        for node, kind, prompt in bypassed:
            assert node not in prompt
            if kind in HANDED_ON:
                handed_on.append(node)
            else:
                assert lacks_an_input(canvas.server, in_one_step(prompt)), f"{name} without {kind}"
        if handed_on:
            canvas.evaluate("(ids) => ids.forEach(id => { app.graph.getNodeById(id).mode = 4 })", handed_on)
            prompt = canvas.prompt()
            assert prompt and not prompt.keys() & set(handed_on)
            assert canvas.server.run(in_one_step(prompt)).executed, name
        assert canvas.errors == [], name
        seen |= {kind for _, kind, _ in bypassed}
    assert seen == {name for name, node in canvas.server.get("/object_info").items() if node["python_module"] == f"custom_nodes.{PACK_NAME}"}


def test_all_nodes_bypassed_leaves_nothing_to_run(canvas):
    workflow = edit()
    for node in workflow["nodes"]:
        node["mode"] = BYPASSED
    canvas.load(workflow)
    assert canvas.prompt() == {}
    assert canvas.errors == []


def lacks_an_input(server, prompt: dict) -> bool:
    """Whether the server finds a node with nothing at an input that it needs; what does not depend on it runs."""
    try:
        answer = server.post("/prompt", {"prompt": prompt, "prompt_id": str(uuid.uuid4())})
    except urllib.error.HTTPError as refusal:
        answer = json.loads(refusal.read())
    else:
        assert server.wait(answer["prompt_id"])["status"]["status_str"] == "success"
    return any(error["type"] == "required_input_missing" for node in answer["node_errors"].values() for error in node["errors"])


def in_one_step(prompt: dict) -> dict:
    for entry in prompt.values():
        entry["inputs"] |= {"steps": 1} if "steps" in entry["inputs"] else {}
    return prompt
