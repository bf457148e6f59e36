"""ComfyUI's own workflow templates in API format, which otherwise only the frontend makes of them."""

from __future__ import annotations

import json

from harness import Graph, Server

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def api_of_template(server: Server, name: str) -> Graph:
    """The template as a graph; subgraphs are opened, and what is bypassed hands on its input of the same type."""
    flow = json.loads(server.get_bytes(f"/templates/{name}.json"))
    subgraphs = {sub["id"]: sub for sub in flow.get("definitions", {}).get("subgraphs", [])}
    top = "", flow["nodes"], {link[0]: (link[1], link[2], link[5]) for link in flow["links"]}
    inner = {
        key: (f"{key[:4]}_", sub["nodes"], {x["id"]: (x["origin_id"], x["origin_slot"], x["type"]) for x in sub["links"]})
        for key, sub in subgraphs.items()
    }

    def source(level, link_id):
        """[node, slot] at the far end of a link; None for a value that the subgraph's own widgets hold."""
        prefix, nodes, links = level
        if link_id is None or links[link_id][0] < 0:
            return None
        origin, slot, kind = links[link_id]
        node = next(node for node in nodes if node["id"] == origin)
        if node["type"] in subgraphs:
            return source(inner[node["type"]], subgraphs[node["type"]]["outputs"][slot]["linkIds"][0])
        if not node.get("mode"):
            return [f"t{prefix}{origin}", slot]
        passed = next((i for i in node["inputs"] if i["type"] == kind and i.get("link")), None)
        return source(level, passed["link"]) if passed else None

    graph = Graph()
    for level in (top, *inner.values()):
        for node in level[1]:
            if node.get("mode") or node["type"] in subgraphs or node["type"].endswith("Note"):
                continue
            linked = {i["name"]: source(level, i.get("link")) for i in node.get("inputs", [])}
            inputs = widget_values(server, node) | {key: value for key, value in linked.items() if value is not None}
            graph.prompt[f"t{level[0]}{node['id']}"] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": ""}}
    return graph


def widget_values(server: Server, node: dict) -> dict:
    """The values that a workflow file stores by position, by name."""
    spec = server.node(node["type"])["input"]
    values, named = iter(node.get("widgets_values") or []), {}
    for name, entry in {**spec.get("required", {}), **spec.get("optional", {})}.items():
        options = entry[1] if len(entry) > 1 else {}
        if isinstance(entry[0], list) or entry[0] in WIDGETS:
            named[name] = next(values, options.get("default"))
            if options.get("control_after_generate"):
                next(values, None)
    return named
