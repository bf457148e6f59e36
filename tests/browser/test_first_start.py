"""The address that `dev.py run` prints."""
from __future__ import annotations

import importlib.util

from harness import PACK_NAME, ROOT


def load_dev():
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    return dev


def test_it_opens_the_built_in_models_template(open_canvas, server):
    dev = load_dev()
    address = dev.address(server.port, PACK_NAME)
    canvas = open_canvas(query=address.partition(f":{server.port}/")[2])
    canvas.page.wait_for_function("app.graph.nodes.some(node => node.type.startsWith('OmniGen2'))")
    assert canvas.evaluate("app.extensionManager.workflow.activeWorkflow.filename") == dev.FIRST_TEMPLATE
    assert canvas.missing_nodes() == []
    assert canvas.errors == []
