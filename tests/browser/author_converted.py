"""Write `workflows/converted/`: the example graphs of the two archived OmniGen2 packs, rebuilt with these nodes.

    python tests/browser/author_converted.py

Values are those of the originals: the examples that neverbiasu/ComfyUI-OmniGen2 ships, and the default values of
Yuan-ManX/ComfyUI-OmniGen2, which ships none. Run it like author.py.
"""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "browser")]

from author import VIEW, author  # noqa: E402
from browser_harness import Canvas, launch  # noqa: E402
from canvas_graph import Column, Graph, Group, Row  # noqa: E402
from harness import Server  # noqa: E402
from template_parts import decode, encode, sample  # noqa: E402

FOLDER = ROOT / "workflows" / "converted"
MODEL_FOLDER = "OmniGen2"
OLD_NEGATIVE = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, (extra_limb), (ugly), "
    "(poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)
"""The negative prompt of both packs. Its brackets are text, there as here."""


class Parts:
    """What OmniGen2 Load Folder gives, by the names that the helpers of the templates use."""

    def __init__(self, graph: Graph):
        self.node = graph.add("OmniGen2LoadFolder", box=(320, 0), folder=MODEL_FOLDER, dtype="bf16")
        self.model, self.clip, self.vae = self.node["model"], self.node["clip"], self.node["vae"]


def converted(name: str, origin: str, prompt: str, pictures: int = 0, *, prefix: str = "OmniGen2", encoding: dict, sampling: dict) -> Graph:
    """The old pipeline node as three: encode, sample, decode."""
    graph = Graph(name)
    note = graph.note(
        f"## Converted\n\n{origin}\n\nThe old sampler was one node; here it is **OmniGen2 Encode**, **OmniGen2 Sampler** and **VAE Decode**. "
        f"Put the authors' folder into `models/diffusers/{MODEL_FOLDER}`, or choose yours."
    )
    parts = Parts(graph)
    loaded = [graph.add("LoadImage", box=(280, 280), image="example.png") for _ in range(pictures)]
    encoded = encode(graph, parts, prompt, [image["IMAGE"] for image in loaded], negative_prompt=OLD_NEGATIVE, width=1024, height=1024,
                     box=(400, 400), **encoding)
    sampled = sample(graph, parts.model, encoded, text_guidance=5.0, image_guidance=2.0, box=(320, 0), **sampling)
    decoded = decode(graph, parts, sampled)
    saved = graph.add("SaveImage", images=decoded["IMAGE"], filename_prefix=prefix, box=(460, 480))
    graph.layout = Row(
        Column(note, Group("Model", parts.node)), *([Group("Image", *loaded)] if loaded else []), Group("Prompt", encoded),
        Group("Sampling", sampled), Group("Picture", decoded, saved),
    )  # fmt: skip
    return graph


def graphs() -> list[Graph]:
    """The converted workflows."""
    from_neverbiasu = "From `{}` of neverbiasu/ComfyUI-OmniGen2."
    return [
        converted(
            "neverbiasu-text-to-image", from_neverbiasu.format("omnigen2_text_to_image01.json"),
            "A snow maiden with pale translucent skin, frosty white lashes, and a soft expression of longing",
            encoding={}, sampling={"seed": 1154, "control_after_generate": "randomize", "steps": 50, "solver": "euler"},
        ),
        converted(
            "neverbiasu-edit", from_neverbiasu.format("omnigen2_image_editing01.json"), "Change the dress to blue.", pictures=1,
            encoding={"max_side": 1024, "max_pixels": 1048576},
            sampling={"seed": 102, "control_after_generate": "randomize", "steps": 50, "solver": "euler"},
        ),
        converted(
            "Yuan-ManX-text-to-image", "The default values of the three nodes of Yuan-ManX/ComfyUI-OmniGen2, without an image.",
            "A dog running in the park",
            encoding={}, sampling={"seed": 0, "control_after_generate": "randomize", "steps": 30, "solver": "dpmpp_2m"},
        ),
        converted(
            "Yuan-ManX-edit", "The default values of the three nodes of Yuan-ManX/ComfyUI-OmniGen2, with one image.",
            "A dog running in the park", pictures=1, encoding={"max_side": 2048, "max_pixels": 1048576},
            sampling={"seed": 0, "control_after_generate": "randomize", "steps": 30, "solver": "dpmpp_2m"},
        ),
    ]  # fmt: skip


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, sync_playwright() as playwright:
        (server.models / "diffusers" / MODEL_FOLDER / "transformer").mkdir(parents=True)
        browser = launch(playwright)
        canvas = Canvas(browser, server, width=VIEW[0], height=VIEW[1])
        for graph in graphs():
            author(canvas, graph, FOLDER)
            print(graph.name)
        browser.close()


if __name__ == "__main__":
    main()
