"""Graphs for the published weights, made to run on the built-in model: its loader, sizes, settings, words and pictures.

A scene is its ground, then place, colour, shape and size of each thing, as in built_in_choices.py.
"""
from __future__ import annotations

import json
from typing import Iterable

import numpy as np
from PIL import Image

from harness import ROOT, Server
from template_parts import BUILT_IN, built_in_drawing

FOLDER = ROOT / "workflows"
LOADED = {"OmniGen2LoadDiffusionModel": 0, "OmniGen2LoadEncoder": 1, "OmniGen2LoadVAE": 2}
"""Loaders of one file, and the output of OmniGen2 Load Folder that takes their place."""
TEXTS = {"OmniGen2Encode": "prompt", "OmniGen2Ask": "question", "OmniGen2Chat": "message", "OmniGen2ReflectionLoop": "prompt", "OmniGen2BestOfN": "prompt"}
"""The input that says what is wanted, by node."""


def api(name: str, folder: str = "api") -> dict:
    """The API file of a template, or of a converted workflow in the folder converted/api."""
    return json.loads((FOLDER / folder / f"{name}.json").read_text(encoding="utf-8"))


def node_of(prompt: dict, class_type: str) -> dict:
    return next(entry for entry in prompt.values() if entry["class_type"] == class_type)


def on_built_in_model(server: Server, prompt: dict, sources: Iterable[Image.Image], text: str, lora: str | None = None, **settings) -> dict:
    """An API graph for the published weights on the built-in model, with these pictures and words.

    lora: the choice in place of the graph's own; None leaves the node out. settings: those that are not the built-in
    model's own. `prompt` is changed and returned.
    """
    settings = {**built_in_drawing(), **settings}
    moved, left = {}, iter(sources)
    for node, entry in list(prompt.items()):
        kind, inputs = entry["class_type"], entry["inputs"]
        if kind in LOADED:
            moved[node] = ["loader", LOADED[kind]]
            del prompt[node]
        elif kind == "OmniGen2LoadFolder":
            inputs["folder"] = BUILT_IN
        elif kind == "OmniGen2LoadLoRA" and lora:
            inputs["lora_name"] = lora
        elif kind == "OmniGen2LoadLoRA":
            moved[node] = ["loader", 0]
            del prompt[node]
        elif kind == "LoadImage":
            inputs["image"] = server.save_input(f"source-{len(list(server.input.iterdir()))}.png", next(left))
        elif kind == "ImageScaleToTotalPixels":
            inputs["megapixels"] = 0.01
        elif kind.startswith("OmniGen2"):
            inputs |= {key: value for key, value in settings.items() if key in inputs}
            inputs |= {TEXTS[kind]: text} if kind in TEXTS else {}
    for entry in prompt.values():
        entry["inputs"] |= {key: moved[value[0]] for key, value in entry["inputs"].items() if isinstance(value, list) and value[0] in moved}
    if moved:
        prompt["loader"] = {"class_type": "OmniGen2LoadFolder", "inputs": {"folder": BUILT_IN, "dtype": "auto"}}
    return prompt


def with_mask(picture: Image.Image) -> Image.Image:
    """The right half transparent: that is how the canvas's mask editor saves a mask."""
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (picture.width // 2, 0, picture.width, picture.height))
    picture = picture.convert("RGBA")
    picture.putalpha(alpha)
    return picture


def rendered(ground: str, *things: tuple[str, str, str, str]) -> Image.Image:
    """A picture of a scene, exact to the pixel, in the built-in model's own size."""
    from omnigen2_core.nano.world import render

    return Image.fromarray(render(scene_of(ground, things)))


def assert_shows(picture: np.ndarray | Image.Image, ground: str, *things: tuple[str, str, str, str]) -> None:
    """That a program which sees only the pixels [H, W, 3] finds this scene in them."""
    from omnigen2_core.nano.judge import look

    seen = look(np.asarray(picture))
    assert seen.scene == scene_of(ground, things), seen.doubt


def scene_of(ground: str, things: tuple[tuple[str, str, str, str], ...]):
    from omnigen2_core.nano.world import PLACES, Scene, Thing

    return Scene(ground, tuple(Thing(PLACES.index(place), *rest) for place, *rest in things))
