"""The server fixture itself, with core nodes: what the other tests rely on."""
from __future__ import annotations

import pytest
from PIL import Image

from harness import Graph, Refused


def empty_latent(graph: Graph, factor: float = 1.0):
    latent = graph.add("EmptySD3LatentImage", width=64, height=32, batch_size=2)
    return graph.add("TestScaleLatent", latent=latent[0], factor=factor)


def test_tensors_come_out_of_the_server(server, graph):
    node = graph.add("TestSaveTensors", name="harness", latent=empty_latent(graph)[0])
    tensors = server.tensors(server.run(graph), node)
    assert tensors["latent"].shape == (2, 16, 4, 8)


def test_a_picture_goes_in_and_comes_out_unchanged(server, graph):
    picture = Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 30).convert("RGB")
    loaded = graph.add("LoadImage", image=server.save_input("harness.png", picture))
    node = graph.add("SaveImage", images=loaded[0], filename_prefix="harness")
    returned, = server.images(server.run(graph), node)
    assert returned.tobytes() == picture.tobytes()


def test_an_unchanged_node_is_not_run_again(server):
    def run(factor):
        graph = Graph()
        graph.add("TestSaveTensors", name="cached", latent=empty_latent(graph, factor)[0])
        return server.run(graph)

    run(3.0)
    again, changed = run(3.0), run(4.0)
    assert again.executed == [] and "1" in again.cached
    assert changed.executed == ["2", "3"] and changed.cached == ["1"]


def test_a_wrong_prompt_is_refused_with_the_node_named(server, graph):
    node = graph.add("EmptySD3LatentImage", width=-64, height=64, batch_size=1)
    graph.add("TestSaveTensors", name="refused", latent=node[0])
    with pytest.raises(Refused) as refusal:
        server.run(graph)
    assert list(refusal.value.node_errors) == [node]


def test_a_failing_node_is_reported_with_its_message(server, graph):
    node = graph.add("TestLoadLatent", file="not there.safetensors")
    graph.add("TestSaveTensors", name="failing", latent=node[0])
    result = server.run(graph, check=False)
    assert (result.status, result.error_node) == ("error", node)
    assert "not there.safetensors" in result.error
