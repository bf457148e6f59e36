"""The blueprint subgraphs, as the frontend offers them among the nodes."""
from __future__ import annotations

import json

import pytest

from built_in_choices import RUNS
from built_in_graphs import assert_shows, on_built_in_model, rendered
from harness import PACK_NAME, ROOT

FOLDER = ROOT / "subgraphs"
LISTED = """(name) => document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('subgraph')
    .subgraphBlueprints.some(blueprint => blueprint.display_name === name)"""
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_there_is_one_for_edit():
    assert NAMES == ["OmniGen2 edit"]


@pytest.mark.parametrize("name", NAMES)
def test_the_server_offers_it(server, name):
    entries = {entry["name"]: (key, entry) for key, entry in server.get("/global_subgraphs").items() if entry["source"] == "custom_node"}
    key, entry = entries[name]
    assert entry["info"]["node_pack"].endswith(PACK_NAME)
    assert json.loads(server.get(f"/global_subgraphs/{key}")["data"]) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_subgraph_and_nothing_else(name):
    workflow = read(name)
    subgraph, = workflow["definitions"]["subgraphs"]
    node, = workflow["nodes"]
    assert node["type"] == subgraph["id"]
    assert [slot["type"] for slot in node["inputs"] if "widget" not in slot] == ["IMAGE"]
    assert [slot["type"] for slot in node["outputs"]] == ["IMAGE"]


@pytest.mark.parametrize("name", NAMES)
def test_it_becomes_a_node_that_edits(canvas, name):
    """Listed among the frontend's blueprints, with a picture in and out; its prompt reaches the encode node inside, and
    on the built-in model the picture that comes out is the edited one.
    """
    canvas.page.wait_for_function(LISTED, arg=name)
    canvas.load(read(name))
    assert canvas.missing_nodes() == []
    subgraph = canvas.evaluate("app.graph.nodes[0].id")
    assert canvas.evaluate("(id) => app.graph.getNodeById(id).widgets.map(w => w.name)", subgraph) == [
        "prompt", "seed", "steps", "text_guidance", "image_guidance", "unet_name", "text_encoder", "vae_name",
    ]  # fmt: skip
    canvas.evaluate("(id) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'prompt').value = 'make it green' }", subgraph)
    source, save = canvas.add_node("EmptyImage", x=-500), canvas.add_node("SaveImage", x=700)
    canvas.evaluate("""([a, b, c]) => {
        const [source, subgraph, save] = [a, b, c].map(id => app.graph.getNodeById(id));
        source.connect(0, subgraph, 0);
        subgraph.connect(0, save, 0);
    }""", [source, subgraph, save])
    prompt = canvas.prompt()
    inside = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert inside["OmniGen2Encode"]["prompt"] == "make it green"
    assert inside["OmniGen2Encode"]["images.image_1"] == [str(source), 0]
    assert inside["OmniGen2Sample"]["steps"] == 50
    assert prompt[inside["SaveImage"]["images"][0]]["class_type"] == "VAEDecode"
    assert canvas.errors == []

    [scene], text, wanted = RUNS["OmniGen2-edit"]
    prompt[str(source)] = {"class_type": "LoadImage", "inputs": {}}
    edited, = canvas.server.images(canvas.server.run(on_built_in_model(canvas.server, prompt, [rendered(*scene)], text)))
    assert_shows(edited, *wanted)
