"""What loading a large file costs the server's process."""

import json
import sys
import threading
from contextlib import contextmanager

import pytest
from harness import Graph
from make_checkpoints import write_large_dit, write_sparse


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process's memory")
@pytest.mark.parametrize("kind", ["transformer", "encoder"])
def test_loading_2_gb_takes_no_more_memory_than_1_2_times_the_file(server, golden, kind):
    graph = Graph()
    if kind == "transformer":
        path = write_large_dit(server.models / "diffusion_models" / "large.safetensors", 2.1, golden)
        loaded = graph.add("OmniGen2LoadDiffusionModel", unet_name=path.name, dtype="auto")
    else:
        path = write_large_encoder(server.models / "text_encoders" / "large.safetensors", golden)
        loaded = graph.add("OmniGen2LoadEncoder", text_encoder=path.name, dtype="auto")
    size = path.stat().st_size
    assert size > 2e9
    graph.add("PreviewAny", source=loaded[0])
    server.free()
    before = server.memory()["RssAnon"]
    try:
        with highest_memory(server) as highest:
            server.run(graph)
        assert highest[0] - before < 1.2 * size
    finally:
        server.free()
        path.unlink()


def write_large_encoder(path, golden):
    """Zeros in the published shapes, with as many layers as make 2 GB."""
    names = json.loads((golden / "real_keys.json").read_text(encoding="utf-8"))["qwen25_vl_3b_transformers_4_51"]
    shapes = {name: shape for name, shape in names.items() if not name.startswith(("model.layers.", "lm_head."))}
    for layer in range(5):
        shapes |= {name: shape for name, shape in names.items() if name.startswith(f"model.layers.{layer}.")}
    return write_sparse(path, shapes)


@contextmanager
def highest_memory(server):
    """A list whose one entry is the most anonymous memory that the server held meanwhile, looked at every 20 ms."""
    highest, done = [server.memory()["RssAnon"]], threading.Event()

    def watch():
        while not done.wait(0.02):
            highest[0] = max(highest[0], server.memory()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        done.set()
        watcher.join()
