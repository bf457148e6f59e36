"""Workflows of the two archived OmniGen2 packs: what ComfyUI puts in the place of their loaders."""
from __future__ import annotations

import pytest

from harness import Graph, Refused

LOADERS = {
    "LoadOmniGen2Model": {"model_path": "OmniGen2/OmniGen2", "dtype": "bf16", "scheduler": "dpmsolver", "offload_type": "cpu_offload"},
    "OmniGen2ModelLoader": {"repo_id": "OmniGen2/OmniGen2", "dtype": "bf16", "enable_sequential_cpu_offload": False,
                            "enable_model_cpu_offload": True},
}
SAMPLERS = {"LoadOmniGen2Image", "OmniGen2", "OmniGen2Sampler"}


def test_only_the_loaders_are_offered(server):
    offered = server.get("/node_replacements")
    assert {name: offered[name][0]["new_node_id"] for name in LOADERS} == dict.fromkeys(LOADERS, "OmniGen2LoadFolder")
    assert not SAMPLERS & offered.keys()


@pytest.mark.parametrize("old", LOADERS)
def test_mapped_inputs_are_inputs_of_both_nodes(server, old):
    entry, = server.get("/node_replacements")[old]
    new_inputs = server.node(entry["new_node_id"])["input"]["required"]
    for mapping in entry["input_mapping"]:
        assert mapping["new_id"] in new_inputs
        assert mapping["old_id"] in LOADERS[old] and mapping["old_id"] in entry["old_widget_ids"]
    assert list(LOADERS[old]) == entry["old_widget_ids"][:len(LOADERS[old])]


@pytest.mark.parametrize("old", LOADERS)
def test_an_old_loader_in_a_prompt_becomes_ours(server, old):
    """The folder and the dtype reach our node, which then says that there is no such folder here."""
    graph = Graph()
    loader = graph.add(old, **LOADERS[old])
    graph.add("SaveLatent", samples=graph.add("KSampler", model=loader[0])[0], filename_prefix="x")
    with pytest.raises(Refused) as refusal:
        server.queue(graph)
    problem = refusal.value.node_errors[str(loader)]
    assert problem["class_type"] == "OmniGen2LoadFolder"
    assert "'OmniGen2/OmniGen2'" in str(problem["errors"]) and "models/diffusers" in str(problem["errors"])
