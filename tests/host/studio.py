"""Graphs with OmniGen2 Reflection Loop or OmniGen2 Best of N whose encoder answers by a script, and what they report."""

from __future__ import annotations

import json

from harness import Graph, Result
from PIL import Image

NOTES = "omnigen2_notes"
ROUNDS = "omnigen2_rounds"
PROMPT = "a fox in the snow"
ASKED = "Is there a fox?"
RIGHT = "VERDICT: RIGHT\nPROBLEM: NONE\nKIND: NONE\nFIX: NONE"
WRONG = "VERDICT: WRONG\nPROBLEM: the fox is blue\nKIND: ATTRIBUTE\nFIX: Make the fox red"
MISPLACED = "VERDICT: WRONG\nPROBLEM: no second fox\nKIND: LAYOUT\nFIX: Draw two foxes"
KOREAN = "여우가 파란색입니다. 빨간색으로 바꾸세요."
SETTINGS = {
    "prompt": PROMPT, "negative_prompt": "", "width": 64, "height": 64, "match_reference": True, "seed": 7, "steps": 2,
    "solver": "euler", "text_guidance": 2.0, "image_guidance": 1.5, "guidance_start": 0.0, "guidance_end": 1.0,
    "shift": "auto", "max_pixels": 0, "max_side": 0, "encoder_sees_images": False, "judge": "model",
}  # fmt: skip
ENCODE = ("prompt", "negative_prompt", "width", "height", "match_reference", "max_pixels", "max_side", "encoder_sees_images")
SAMPLE = ("seed", "steps", "solver", "text_guidance", "image_guidance", "guidance_start", "guidance_end", "shift")
LOOP = {**SETTINGS, "rounds": 2, "redraw": "auto", "reflect_by": "prompted", "edit_text_guidance": 0.0, "edit_image_guidance": 0.0, "pick": -1,
        "earlier_rounds": ""}  # fmt: skip


class Studio:
    """A graph with a loader and a scripted encoder, to which a node of this file is added."""

    def __init__(self, folder: str, *script: str | float):
        self.graph = Graph()
        self.model, self.clip, self.vae = (self.graph.add("OmniGen2LoadFolder", folder=folder, dtype="fp32")[i] for i in range(3))
        if script:
            self.clip = self.graph.add("TestReflects", clip=self.clip, script=json.dumps(script))[0]

    def picture(self, size: int = 64) -> list:
        return self.graph.add("EmptyImage", width=size, height=size, batch_size=1, color=0xFF8000)[0]

    def loop(self, images=(), **inputs) -> Graph.Node:
        return self._add("OmniGen2ReflectionLoop", images, {**LOOP, **inputs})

    def best_of(self, images=(), **inputs) -> Graph.Node:
        return self._add("OmniGen2BestOfN", images, {**SETTINGS, "count": 3, **inputs})

    def _add(self, kind: str, images, inputs: dict) -> Graph.Node:
        slots = {f"images.image_{i}": image for i, image in enumerate(images, start=1)}
        return self.graph.add(kind, model=self.model, clip=self.clip, vae=self.vae, **inputs, **slots)


def rounds(result: Result, node: Graph.Node) -> dict:
    """The rounds as a node reported them in the end."""
    return result.ui[node][ROUNDS][0]


def run_loop(server, folder, *script, images=0, **inputs) -> tuple[dict, Result, Graph.Node]:
    studio = Studio(folder, *script)
    node = studio.loop([studio.picture() for _ in range(images)], **inputs)
    result = server.run(studio.graph)
    return rounds(result, node), result, node


def told(result: Result) -> list[dict]:
    """What the page was told while the node ran."""
    return [data for kind, data in result.events if kind == "omnigen2.rounds"]


def interrupted(server, graph: Graph, when) -> Result:
    """Runs a graph and interrupts it at the first event of which `when(kind, data)` is true."""
    done = []

    def look(kind, data, result):
        if not done and when(kind, data):
            done.append(True)
            server.interrupt()

    result = server.run(graph, on_event=look, check=False)
    assert result.status == "interrupted"
    return result


def picture_of(server, name: str) -> Image.Image:
    return Image.open(server.output / name).convert("RGB")


def values_of(made: dict, *keys: str) -> list:
    return [tuple(entry[key] for key in keys) for entry in made["rounds"]]


def refusal(server, studio: Studio) -> str:
    result = server.run(studio.graph, check=False)
    assert result.status == "error"
    assert "\n" not in result.error.strip()
    return result.error
