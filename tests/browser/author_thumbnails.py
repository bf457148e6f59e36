"""Write the picture beside every template, from a real run of its graph on the built-in model.

    python tests/browser/author_thumbnails.py

Templates on the built-in model are run as they are. Those for the published weights are run from their API files with
the loaders, sizes and settings of the built-in model, on pictures that it has drawn. Run it after new weights.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "browser")]

from harness import Server  # noqa: E402
from template_graphs import BUILT_IN, built_in_settings  # noqa: E402

FOLDER = ROOT / "workflows"
SIZE = (480, 360)
RESULT, SOURCE, MARGIN = 330, 100, 15
BACKGROUND, ARROW = (32, 32, 36), (190, 190, 196)

PUBLISHED: dict[str, tuple[list[str], str]] = {
    "OmniGen2-text-to-image": ([], "A large purple diamond in the middle, a small white ring at the top right and a small orange circle at the bottom left on a black background"),
    "OmniGen2-edit": (["A large blue cross in the middle and a small yellow square at the top right on a white background"], "Change the background to green"),
    "OmniGen2-in-context-two-references": (
        ["A large orange triangle in the middle on a white background", "A large purple ring on the right on a black background"],
        "Put the shape from image 1 on the left and the shape from image 2 on the right on a yellow background",
    ),
    "OmniGen2-in-context-three-references": (
        ["A large white circle in the middle on a blue background", "A large red cross on the left on a white background", "A small yellow square at the top on a black background"],
        "Put the shape from image 1 on the left, the shape from image 2 in the middle and the shape from image 3 on the right on a green background",
    ),
    "OmniGen2-masked-edit": (["A large green square on the left and a large red diamond on the right on a white background"], "Make the red diamond purple"),
    "OmniGen2-LoRA": (
        ["A large yellow diamond in the middle on a black background", "A large blue triangle in the middle on a white background"],
        "Put the shape from image 1 at the top right and the shape from image 2 at the bottom left on a purple background",
    ),
}  # fmt: skip
"""For each template on the published weights: what to draw as its pictures, and the prompt for the built-in model."""


def api(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def run(server: Server, prompt: dict) -> tuple[list[Image.Image], Image.Image]:
    """Run a graph; its pictures shown on the way, in order, and the one that it saves."""
    result = server.run(prompt)
    last = next(node for node in prompt if prompt[node]["class_type"] == "SaveImage")
    final_parents = {tuple(link) for link in prompt[last]["inputs"].values() if isinstance(link, list)}
    shown = []
    for node, entry in prompt.items():
        if entry["class_type"] != "PreviewImage":
            continue
        enlarged = prompt[entry["inputs"]["images"][0]]
        if tuple(enlarged["inputs"]["image"]) not in final_parents:
            shown += server.images(result, node)
    return shown, server.images(result, last)[0]


def draw(server: Server, text: str) -> Image.Image:
    """A picture by the built-in model."""
    prompt = api("Try-it-text-to-image")
    node_of(prompt, "OmniGen2Encode")["inputs"]["prompt"] = text
    return run(server, prompt)[1]


def node_of(prompt: dict, class_type: str) -> dict:
    return next(entry for entry in prompt.values() if entry["class_type"] == class_type)


def on_built_in_model(server: Server, name: str, sources: list[Image.Image], text: str) -> dict:
    """A template's API graph with the built-in model's loader, settings and sizes, on these pictures."""
    settings, prompt = built_in_settings(), api(name)
    outputs = {"OmniGen2LoadDiffusionModel": 0, "OmniGen2LoadEncoder": 1, "OmniGen2LoadVAE": 2}
    moved = {}
    for node, entry in list(prompt.items()):
        kind = entry["class_type"]
        if kind in outputs:
            moved[node] = ["loader", outputs[kind]]
            del prompt[node]
        elif kind == "OmniGen2LoadLoRA":
            moved[node] = ["loader", 0]
            del prompt[node]
    prompt["loader"] = {"class_type": "OmniGen2LoadFolder", "inputs": {"folder": BUILT_IN, "dtype": "auto"}}
    left = iter(sources)
    for entry in prompt.values():
        inputs = entry["inputs"]
        inputs |= {key: moved[value[0]] for key, value in inputs.items() if isinstance(value, list) and value[0] in moved}
        if entry["class_type"] == "LoadImage":
            inputs["image"] = server.save_input(f"{name}-{inputs['image']}-{len(list(server.input.iterdir()))}.png", next(left))
        elif entry["class_type"] == "OmniGen2Encode":
            inputs |= {"prompt": text, "negative_prompt": "", "width": settings["default_width"], "height": settings["default_height"]}
        elif entry["class_type"] == "OmniGen2Sample":
            inputs |= {key: settings[key] for key in ("steps", "text_guidance", "image_guidance", "guidance_end")}
        elif entry["class_type"] == "ImageScaleToTotalPixels":
            inputs["megapixels"] = 0.01
    return prompt


def with_mask(picture: Image.Image) -> Image.Image:
    """The right half transparent: that is how the canvas's mask editor saves a mask."""
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (picture.width // 2, 0, picture.width, picture.height))
    picture = picture.convert("RGBA")
    picture.putalpha(alpha)
    return picture


def compose(sources: list[Image.Image], result: Image.Image) -> Image.Image:
    """The sources on the left, an arrow, the result on the right."""
    card = Image.new("RGB", SIZE, BACKGROUND)
    left = SIZE[0] - RESULT - MARGIN if sources else (SIZE[0] - RESULT) // 2
    card.paste(result.resize((RESULT, RESULT), Image.Resampling.LANCZOS), (left, (SIZE[1] - RESULT) // 2))
    top = (SIZE[1] - len(sources) * SOURCE - (len(sources) - 1) * MARGIN) // 2
    for number, source in enumerate(sources):
        card.paste(source.convert("RGB").resize((SOURCE, SOURCE), Image.Resampling.LANCZOS), (MARGIN, top + number * (SOURCE + MARGIN)))
    if sources:
        middle, start = SIZE[1] // 2, MARGIN + SOURCE + 4
        ImageDraw.Draw(card).polygon([(start, middle - 8), (start + 12, middle), (start, middle + 8)], fill=ARROW)
    return card


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        for file in sorted(FOLDER.glob("*.json")):
            if file.stem in PUBLISHED:
                scenes, text = PUBLISHED[file.stem]
                sources = [draw(server, scene) for scene in scenes]
                given = [with_mask(source) for source in sources] if file.stem == "OmniGen2-masked-edit" else sources
                _, result = run(server, on_built_in_model(server, file.stem, given, text))
            else:
                sources, result = run(server, api(file.stem))
            compose(sources, result).save(file.with_suffix(".jpg"), quality=88, optimize=True)
            print(file.stem)


if __name__ == "__main__":
    main()
