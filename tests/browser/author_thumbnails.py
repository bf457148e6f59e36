"""Write the picture beside every template, from a real run of its graph on the built-in model.

    python tests/browser/author_thumbnails.py [NAME ...]

Templates on the built-in model are run as they are. Those for the published weights are run from their API files with
the loaders, sizes and settings of the built-in model, on pictures that it has drawn. Run it after new weights.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "browser")]

from built_in_choices import THUMBNAILS  # noqa: E402
from built_in_graphs import api, node_of, on_built_in_model, with_mask  # noqa: E402
from harness import Result, Server  # noqa: E402

FOLDER = ROOT / "workflows"
SIZE = (480, 360)
RESULT, SOURCE, MARGIN = 330, 100, 15
BACKGROUND, ARROW = (32, 32, 36), (190, 190, 196)
FONT_SIZE, PADDING = 17, 10
USER, MODEL, LETTERS = (44, 62, 92), (66, 66, 72), (228, 228, 232)

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
    "OmniGen2-accelerate": (["A large red diamond in the middle and a small white circle at the bottom left on a blue background"], "Turn the red diamond into a ring"),
}  # fmt: skip
"""For each template on the published weights in which nobody looks: what to draw as its pictures, and the prompt for the
built-in model. Those of the others depend on what it sees and are in built_in_choices.py."""

class Outcome(NamedTuple):
    """What a run gave. said: who says it (the user?) and what, a text or a picture, where the template is a talk."""

    sources: list[Image.Image]
    result: Image.Image | None
    said: list[tuple[bool, str | Image.Image]] = []


def run(server: Server, prompt: dict, given: list[Image.Image] = ()) -> Outcome:
    """Run a graph. given: the pictures that were loaded into it."""
    result = server.run(prompt)
    kinds = {entry["class_type"]: node for node, entry in prompt.items()}
    if "OmniGen2Ask" in kinds:
        node = kinds["OmniGen2Ask"]
        asked = [(True, picture) for picture in given or server.images(result)]
        return Outcome([], None, [*asked, (True, prompt[node]["inputs"]["question"]), (False, result.ui[node]["text"][0])])
    if "OmniGen2Chat" in kinds:
        return Outcome([], None, conversation(server, result, kinds["OmniGen2Chat"]))
    judged = kinds.get("OmniGen2ReflectionLoop") or kinds.get("OmniGen2BestOfN")
    if judged:
        made = result.ui[judged]["omnigen2_rounds"][0]
        drawn = [opened(server, name) for name in made["pictures"]]
        best = drawn.pop(made["best"])
        return Outcome(drawn, best)
    last = kinds["SaveImage"]
    return Outcome(list(given) or shown_on_the_way(server, prompt, result, last), server.images(result, last)[0])


def shown_on_the_way(server: Server, prompt: dict, result: Result, last: str) -> list[Image.Image]:
    """What a graph shows besides what it saves, in order."""
    final_parents = {tuple(link) for link in prompt[last]["inputs"].values() if isinstance(link, list)}
    shown = []
    for node, entry in prompt.items():
        if entry["class_type"] != "PreviewImage":
            continue
        enlarged = prompt[entry["inputs"]["images"][0]]
        if tuple(enlarged["inputs"]["image"]) not in final_parents:
            shown += server.images(result, node)
    return shown


def conversation(server: Server, result: Result, node: str) -> list[tuple[bool, str | Image.Image]]:
    """What was said and shown in a chat."""
    turns = json.loads(result.ui[node]["omnigen2_chat"][0]["conversation"])["turns"]
    return [
        (turn["role"] == "user", said)
        for turn in turns
        for said in (*filter(None, [turn["text"]]), *(opened(server, name) for name in turn["images"]))
    ]


def opened(server: Server, name: str) -> Image.Image:
    with Image.open(server.output / name) as picture:
        return picture.convert("RGB")


def draw(server: Server, text: str) -> Image.Image:
    """A picture by the built-in model."""
    prompt = api("Try-it-text-to-image")
    node_of(prompt, "OmniGen2Encode")["inputs"]["prompt"] = text
    return run(server, prompt).result


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


def talk(said: list[tuple[bool, str | Image.Image]]) -> Image.Image:
    """A conversation from top to bottom, the user's on the right; pictures share the height that the texts leave."""
    card = Image.new("RGB", SIZE, BACKGROUND)
    canvas, font = ImageDraw.Draw(card), ImageFont.load_default(FONT_SIZE)
    texts = [wrapped(text, font, SIZE[0] - 4 * MARGIN - 2 * PADDING) if isinstance(text, str) else None for _, text in said]
    boxes = [canvas.multiline_textbbox((0, 0), text, font) if text else (0, 0, 0, 0) for text in texts]
    heights = [round(box[3]) + 2 * PADDING if text else 0 for text, box in zip(texts, boxes)]
    pictures = sum(text is None for text in texts)
    left = SIZE[1] - 2 * MARGIN - sum(heights) - (len(said) - 1) * PADDING
    side = min(left // pictures, 260) if pictures else 0
    top = (SIZE[1] - sum(heights) - pictures * side - (len(said) - 1) * PADDING) // 2
    for (user, what), text, box, height in zip(said, texts, boxes, heights):
        width = round(box[2]) + 2 * PADDING if text else side
        x = SIZE[0] - MARGIN - width if user else MARGIN
        if text:
            canvas.rounded_rectangle((x, top, x + width, top + height), 8, fill=USER if user else MODEL)
            canvas.multiline_text((x + PADDING, top + PADDING - 2), text, LETTERS, font)
        else:
            card.paste(what.resize((side, side), Image.Resampling.LANCZOS), (x, top))
        top += (height or side) + PADDING
    return card


def wrapped(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """The text in lines of at most this width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def published(server: Server, name: str) -> Outcome:
    """A template for the published weights, on the built-in model."""
    if name in THUMBNAILS:
        text, scenes, settings = THUMBNAILS[name]
    else:
        (scenes, text), settings = PUBLISHED[name], {}
    sources = [draw(server, scene) for scene in scenes]
    loaded = [with_mask(source) for source in sources] if name == "OmniGen2-masked-edit" else sources
    return run(server, on_built_in_model(server, api(name), loaded, text, **settings), sources)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these templates")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        for file in sorted(FOLDER.glob("*.json")):
            name = file.stem
            if options.names and name not in options.names:
                continue
            outcome = published(server, name) if name in PUBLISHED or name in THUMBNAILS else run(server, api(name))
            card = talk(outcome.said) if outcome.said else compose(outcome.sources, outcome.result)
            card.save(file.with_suffix(".jpg"), quality=88, optimize=True)
            print(name)


if __name__ == "__main__":
    main()
