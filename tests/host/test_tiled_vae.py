"""VAE Decode and VAE Encode where the whole does not fit, and their tiled forms, on a picture of the built-in model of several tiles.

A seam is visible from about one level of 255 along a line. Tiles of 256 pixels that are decoded by themselves and blended, as
core does it for autoencoders that cannot do it themselves, differ from the whole decode of this picture by up to 62 levels,
and by steps of up to 7 along whole lines.
"""

import pytest
from harness import Graph, Result
from PIL import Image

from omnigen2_core.nano.world import Scene, Thing, render

BUILT_IN = "OmniGen2-nano (built in)"
SIDE = 512
LARGEST = 0.05
"""Levels of 255 by which a pixel may differ; measured are two ten-thousandths."""


@pytest.fixture(scope="module")
def scene(server):
    things = (
        Thing(0, "red", "circle", "small"),
        Thing(2, "blue", "square", "large"),
        Thing(4, "green", "diamond", "large"),
        Thing(7, "yellow", "ring", "small"),
    )
    return server.save_input("large-scene.png", Image.fromarray(render(Scene("white", things), SIDE, SIDE)))


class Decoded:
    """A graph in which the built-in VAE reads a picture; `image` adds what becomes of it."""

    def __init__(self, scene: str):
        self.graph = Graph()
        self.vae = self.graph.add("OmniGen2LoadFolder", folder=BUILT_IN, dtype="fp32")[2]
        self.loaded = self.graph.add("LoadImage", image=scene)[0]
        self.latent = self.graph.add("VAEEncode", pixels=self.loaded, vae=self.vae)[0]

    def image(self, kind: str, vae=None, **inputs) -> list:
        return self.graph.add(kind, samples=self.latent, vae=vae or self.vae, **inputs)[0]

    def save(self, image: list) -> Graph.Node:
        return self.graph.add("TestSaveTensors", name=f"decoded-{len(self.graph.prompt)}", image=image)


def difference(server, result: Result, *nodes: Graph.Node) -> float:
    """The largest of two images, in levels of 255."""
    whole, other = (server.tensors(result, node)["image"] for node in nodes)
    assert whole.shape == other.shape == (1, SIDE, SIDE, 3)
    return 255 * (whole - other).abs().max().item()


def test_where_the_whole_runs_out_of_memory_there_are_no_seams(server, scene):
    decoded = Decoded(scene)
    small = decoded.graph.add("TestOutOfMemory", vae=decoded.vae)
    image = decoded.image("VAEDecode", vae=small[0])
    asked = decoded.graph.add("TestReadRecord", record=small[1], after=image)
    nodes = [decoded.save(decoded.image("VAEDecode")), decoded.save(image)]
    result = server.run(decoded.graph)
    assert server.records(result, asked) == ["whole", "tiled"]
    assert difference(server, result, *nodes) < LARGEST


@pytest.mark.parametrize(("tile", "overlap"), [(256, 64), (128, 0)])
def test_a_tiled_decode_of_several_tiles_has_no_seams(server, scene, tile, overlap):
    decoded = Decoded(scene)
    sizes = {"tile_size": tile, "overlap": overlap, "temporal_size": 64, "temporal_overlap": 8}
    nodes = [decoded.save(decoded.image("VAEDecode")), decoded.save(decoded.image("VAEDecodeTiled", **sizes))]
    assert difference(server, server.run(decoded.graph), *nodes) < LARGEST


LATENT_ERROR = 1e-4
"""Of latents whose spread is about 1."""


def latents(server, result: Result, *nodes: Graph.Node) -> list:
    return [server.tensors(result, node)["latent"] for node in nodes]


def test_where_a_reference_runs_out_of_memory_it_is_encoded_as_the_whole(server, scene):
    encoded = Decoded(scene)
    small = encoded.graph.add("TestOutOfMemory", vae=encoded.vae)
    latent = encoded.graph.add("VAEEncode", pixels=encoded.loaded, vae=small[0])[0]
    nodes = [encoded.graph.add("TestSaveTensors", name=name, latent=given) for name, given in (("whole", encoded.latent), ("small", latent))]
    asked = encoded.graph.add("TestReadRecord", record=small[1], after=latent)
    result = server.run(encoded.graph)
    assert server.records(result, asked) == ["whole", "tiled"]
    whole, small = latents(server, result, *nodes)
    assert whole.shape == small.shape and (whole - small).abs().max() < LATENT_ERROR


def test_a_tiled_encode_is_that_of_the_whole(server, scene):
    encoded = Decoded(scene)
    sizes = {"tile_size": 128, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    latent = encoded.graph.add("VAEEncodeTiled", pixels=encoded.loaded, vae=encoded.vae, **sizes)[0]
    nodes = [encoded.graph.add("TestSaveTensors", name=name, latent=given) for name, given in (("whole", encoded.latent), ("tiled", latent))]
    whole, tiled = latents(server, server.run(encoded.graph), *nodes)
    assert whole.shape == tiled.shape and (whole - tiled).abs().max() < LATENT_ERROR
