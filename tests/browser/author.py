"""Write the templates in `workflows/` and the blueprint in `subgraphs/` with the real frontend.

    python tests/browser/author.py [NAME ...] [--pictures DIR]

The graphs are described in template_graphs.py. The frontend makes the nodes, connects them and saves both forms, so
that a template is what a person would have saved. Ids come from the order of the description: the same description
and the same frontend give the same files. Run it with the Python that `python dev.py test` has prepared, after
changing a description or a node's inputs. `--pictures` also keeps a picture of every canvas.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "browser")]
sys.path.append(str(ROOT))

from PIL import Image  # noqa: E402

from browser_harness import Canvas, launch  # noqa: E402
from canvas_graph import Graph, place  # noqa: E402
from harness import Server  # noqa: E402
from template_graphs import Blueprint, blueprints, templates  # noqa: E402
from template_parts import FILES  # noqa: E402

NAMES = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/omnigen2/templates")
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
VIEW = (1600, 900)
"""The page in which an opened template should fit, less than that for the bars at its sides."""

MAKE = """async (nodes) => {
    // Unlike clear(), this begins counting ids anew.
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4});
    const made = nodes.map(d => {
        const node = LiteGraph.createNode(d.type);
        if (!node) throw new Error(`there is no node ${d.type}`);
        app.graph.add(node);
        if (d.title) node.title = d.title;
        Object.assign(node.properties, d.properties);
        return node;
    });
    nodes.forEach((d, i) => {
        for (const [name, value] of Object.entries(d.values)) {
            const widget = d.type === 'MarkdownNote' ? made[i].widgets[0] : made[i].widgets.find(w => w.name === name);
            if (!widget) throw new Error(`${d.type} has no widget ${name}, only ${made[i].widgets.map(w => w.name)}`);
            widget.value = value;
            widget.callback?.(value, app.canvas, made[i]);
        }
        for (const [name, [from, output]] of Object.entries(d.links)) {
            const input = made[i].inputs.findIndex(slot => slot.name === name);
            const slot = made[from].outputs.findIndex(slot => slot.name === output);
            if (input < 0) throw new Error(`${d.type} has no input ${name}, only ${made[i].inputs.map(s => s.name)}`);
            if (slot < 0) throw new Error(`${made[from].type} has no output ${output}, only ${made[from].outputs.map(s => s.name)}`);
            if (!made[from].connect(slot, made[i], input)) throw new Error(`${d.type}: ${name} does not take ${output}`);
        }
    });
    return nodes.map((d, i) => {
        const [width, height] = made[i].computeSize();
        made[i].setSize([Math.max(d.box[0], width), Math.max(d.box[1], height)]);
        return [...made[i].size];
    });
}"""

ARRANGE = """([places, groups, id, [width, height]]) => {
    places.forEach((place, i) => { app.graph.getNodeById(i + 1).pos = place });
    for (const [title, color, bounding] of groups) {
        const group = new LiteGraph.LGraphGroup(title);
        group.color = color;
        [group.pos, group.size] = [bounding.slice(0, 2), bounding.slice(2)];
        app.graph.add(group);
    }
    app.graph.id = id;
    const right = Math.max(...app.graph.nodes.map(n => n.pos[0] + n.size[0]), ...groups.map(g => g[2][0] + g[2][2]));
    const bottom = Math.max(...app.graph.nodes.map(n => n.pos[1] + n.size[1]), ...groups.map(g => g[2][1] + g[2][3]));
    const scale = Math.min((width - 240) / right, (height - 200) / bottom, 1);
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [100 / scale, 100 / scale];
    app.canvas.setDirty(true, true);
}"""

CONVERT = """([kept, promoted, title, description]) => {
    const { subgraph, node } = app.graph.convertToSubgraph(new Set(app.graph.nodes.filter(n => !kept.includes(n.type))));
    for (const input of [...subgraph.inputs]) if (input.type !== 'IMAGE') subgraph.removeInput(input);
    subgraph.renameInput(subgraph.inputs[0], 'image');
    subgraph.renameOutput(subgraph.outputs[0], 'image');
    for (const [type, name] of promoted) {
        const inner = subgraph.nodes.find(n => n.type === type);
        const slot = inner.inputs.find(input => input.name === name);
        subgraph.addInput(name, slot.type).connect(slot, inner);
    }
    subgraph.name = node.title = title;
    subgraph.description = description;
    app.graph.nodes.filter(n => n !== node).forEach(n => app.graph.remove(n));
    app.graph.groups.slice().forEach(group => app.graph.remove(group));
    node.pos = [0, 30];
    node.setSize([400, Math.max(340, node.computeSize()[1])]);
}"""


def build(canvas: Canvas, graph: Graph) -> None:
    """Make the graph on the canvas."""
    sizes = canvas.evaluate(MAKE, [
        {"type": n.type, "title": n.title, "box": n.box, "values": n.values, "links": n.links, "properties": n.properties}
        for n in graph.nodes
    ])
    placed = place(graph.layout, sizes)
    forgotten = [n.title or n.type for n in graph.nodes if n.index not in placed.nodes]
    if forgotten:
        raise ValueError(f"{graph.name}: not in the layout: {', '.join(forgotten)}")
    places = [placed.nodes[n.index] for n in graph.nodes]
    canvas.evaluate(ARRANGE, [places, placed.groups, str(uuid.uuid5(NAMES, graph.name)), VIEW])


def author(canvas: Canvas, graph: Graph, folder: Path) -> None:
    """Write a template in UI form, and in API form below `api/`."""
    build(canvas, graph)
    workflow, prompt = json.loads(canvas.evaluate("async () => { const p = await app.graphToPrompt(); return JSON.stringify([p.workflow, p.output]) }"))
    write(folder / f"{graph.name}.json", workflow)
    write(folder / "api" / f"{graph.name}.json", prompt)


def author_blueprint(canvas: Canvas, blueprint: Blueprint, folder: Path) -> None:
    """Write a graph as one subgraph that shows only the promoted widgets."""
    build(canvas, blueprint.graph)
    canvas.evaluate(CONVERT, [blueprint.kept_outside, blueprint.promoted, blueprint.graph.name, blueprint.description])
    text = canvas.evaluate("async () => JSON.stringify((await app.graphToPrompt()).workflow)")
    # The frontend draws the ids of a subgraph and its slots by chance.
    for number, found in enumerate(dict.fromkeys(re.findall(UUID, text))):
        text = text.replace(found, str(uuid.uuid5(NAMES, f"{blueprint.graph.name} {number}")))
    workflow = json.loads(text)
    workflow["definitions"]["subgraphs"][0]["category"] = "OmniGen2"
    write(folder / f"{blueprint.graph.name}.json", workflow)


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these templates")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="keep a picture of every canvas here")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, sync_playwright() as playwright:
        # With these there, no node is marked as lacking its file.
        for place, (name, _) in FILES.items():
            (server.models / place / name).touch()
        server.save_input("example.png", Image.new("RGB", (320, 240), "grey"))
        browser = launch(playwright)
        canvas = Canvas(browser, server, width=VIEW[0], height=VIEW[1])
        for graph in templates():
            if options.names and graph.name not in options.names:
                continue
            author(canvas, graph, ROOT / "workflows")
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                canvas.screenshot(options.pictures / f"{graph.name}.png")
            print(graph.name)
        for blueprint in blueprints():
            if not options.names or blueprint.graph.name in options.names:
                author_blueprint(canvas, blueprint, ROOT / "subgraphs")
                print(blueprint.graph.name)
        browser.close()


if __name__ == "__main__":
    main()
