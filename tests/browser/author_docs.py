"""Make the pictures of the help pages with the real frontend: every node in use, in `web/docs/images/`.

    python tests/browser/author_docs.py [NODE ...] [--still]

The graphs on the built-in model are run, so that their pictures show what comes out; `--still` leaves that out. Run
it with the Python that `python dev.py test` has prepared, after changing a node's inputs.
"""
from __future__ import annotations

import argparse
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "browser")]
sys.path.append(str(ROOT))

from author import build  # noqa: E402
from browser_harness import Canvas, launch  # noqa: E402
from canvas_graph import Column, Graph, Item, Node, Row  # noqa: E402
from harness import Server  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from omnigen2_core.acceleration.presets import PRESETS  # noqa: E402
from template_parts import FILES, built_in_parts, built_in_settings, encode, published_parts, sample  # noqa: E402

IMAGES = ROOT / "web" / "docs" / "images"
REFERENCE = "picture.png"
LARGEST = 40_000
"""Bytes of a picture: one for each node is fetched with every clone."""
WIDEST, HIGHEST = 900, 920
MARGIN, BADGE = 14, 30
"""Pixels around the nodes, and above them, where the frontend names the pack."""


@dataclass
class HelpPicture:
    """A graph, and which of its nodes the picture shows."""

    graph: Graph
    shown: list[Node]
    runs: bool = True


def picture(node: str, graph: Graph, layout: Item, before: list[Node] = (), after: list[Node] = (), runs: bool = True) -> HelpPicture:
    """A picture of what is in `layout`; the nodes `before` and `after` stand beside it and are left out."""
    graph.name = node
    graph.layout = Row(*([Column(*before)] if before else []), layout, *([Column(*after)] if after else []))
    return HelpPicture(graph, [node for node in graph.nodes if node not in (*before, *after)], runs)


def load_folder() -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    encoded, sampled, decoded, shown = _drawing(graph, parts, "A large red circle on the left and a small blue square on the right on a yellow background")
    return picture("OmniGen2LoadFolder", graph, Row(graph.nodes[0], encoded, sampled, Column(decoded, shown)))


def encode_reference() -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    loaded = graph.add("LoadImage", box=(260, 260), image=REFERENCE)
    encoded, sampled, decoded, shown = _drawing(graph, parts, "Change the background to yellow", loaded["IMAGE"])
    return picture("OmniGen2Encode", graph, Row(Column(graph.nodes[0], loaded), encoded, sampled), after=[decoded, shown], runs=False)


def sampler() -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    loaded = graph.add("LoadImage", box=(260, 260), image=REFERENCE)
    encoded, sampled, decoded, shown = _drawing(graph, parts, "Change the background to yellow", loaded["IMAGE"])
    return picture("OmniGen2Sample", graph, Row(encoded, sampled, Column(decoded, shown)), before=[graph.nodes[0], loaded])


def custom_sampling(node: str) -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    settings = built_in_settings()
    encoded = encode(graph, parts, "A large green ring in the middle on a white background", negative_prompt="", box=(300, 360),
                     width=settings["default_width"], height=settings["default_height"])
    guider = graph.add("OmniGen2Guider", box=(300, 0), model=parts.model, positive=encoded["positive"], negative_ref=encoded["negative_ref"],
                       negative=encoded["negative"], text_guidance=settings["text_guidance"])
    sigmas = graph.add("OmniGen2Sigmas", box=(300, 0), model=parts.model, latent=encoded["latent"], steps=settings["steps"])
    noise = graph.add("RandomNoise", box=(240, 0), noise_seed=1, control_after_generate="fixed")
    solver = graph.add("KSamplerSelect", box=(240, 0), sampler_name="res_multistep")
    sampled = graph.add("SamplerCustomAdvanced", box=(240, 0), noise=noise["NOISE"], guider=guider["guider"], sampler=solver["SAMPLER"],
                        sigmas=sigmas["sigmas"], latent_image=encoded["latent"])
    decoded = graph.add("VAEDecode", box=(240, 0), samples=sampled["output"], vae=parts.vae)
    shown = graph.add("PreviewImage", box=(260, 280), images=decoded["IMAGE"])
    return picture(node, graph, Row(Column(guider, sigmas), Column(noise, solver, sampled), Column(decoded, shown)), before=[graph.nodes[0], encoded])


def accelerate() -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    loaded = graph.add("LoadImage", box=(260, 260), image=REFERENCE)
    accelerated = graph.add("OmniGen2Accelerate", box=(300, 0), model=parts.model, preset="balanced")
    parts.model = accelerated["model"]
    steps = PRESETS["balanced"].steps
    encoded, sampled, decoded, shown = _drawing(graph, parts, "Change the background to yellow", loaded["IMAGE"], steps=steps)
    return picture("OmniGen2Accelerate", graph, Row(Column(graph.nodes[0], accelerated), sampled, Column(decoded, shown)), before=[loaded, encoded])


def compiled() -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    node = graph.add("OmniGen2Compile", box=(260, 0), model=parts.model)
    parts.model = node["model"]
    encoded, sampled, decoded, shown = _drawing(graph, parts, "A large green ring in the middle on a white background")
    return picture("OmniGen2Compile", graph, Row(Column(graph.nodes[0], node), sampled), before=[encoded], after=[decoded, shown], runs=False)


def published(node: str) -> HelpPicture:
    """The loaders of single files, with one node that takes what `node` gives. Nobody needs to have the files."""
    graph = Graph("")
    parts = published_parts(graph)
    loaders = Column(*graph.nodes)
    if node == "OmniGen2LoadEncoder":
        prompt = "A red fox sitting in fresh snow at the edge of a birch forest, soft morning light."
        consumer = graph.add("OmniGen2Encode", box=(340, 300), clip=parts.clip, prompt=prompt)
    elif node == "OmniGen2LoadVAE":
        consumer = graph.add("VAEDecode", vae=parts.vae)
    else:
        consumer = graph.add("OmniGen2Sample", model=parts.model)
    return picture(node, graph, Row(loaders, consumer), runs=False)


def load_lora() -> HelpPicture:
    graph = Graph("")
    loader = graph.add("OmniGen2LoadDiffusionModel", unet_name=FILES["diffusion_models"][0])
    lora = graph.add("OmniGen2LoadLoRA", model=loader["model"], lora_name=FILES["loras"][0])
    return picture("OmniGen2LoadLoRA", graph, Row(loader, lora, graph.add("OmniGen2Sample", model=lora["model"])), runs=False)


def ask() -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    loaded = graph.add("LoadImage", box=(260, 260), image=REFERENCE)
    asked = graph.add("OmniGen2Ask", box=(360, 420), clip=parts.clip, question="What color is the circle?", images__image_1=loaded["IMAGE"],
                      seed=1, control_after_generate="fixed")
    return picture("OmniGen2Ask", graph, Row(Column(graph.nodes[0], loaded), asked))


def enhance_prompt() -> HelpPicture:
    """Without a run: the built-in model has no words for more than its shapes."""
    graph = Graph("")
    parts = published_parts(graph)
    loader = next(node for node in graph.nodes if node.type == "OmniGen2LoadEncoder")
    others = [node for node in graph.nodes if node is not loader]
    enhanced = graph.add("OmniGen2EnhancePrompt", box=(360, 480), clip=parts.clip, prompt="a fox in the snow", seed=1, control_after_generate="fixed",
                         edited="A red fox stands in deep, fresh snow at the edge of a birch forest. Its thick coat glows in the low morning sun.")
    encoded = encode(graph, parts, "", box=(300, 360))
    encoded.values.pop("prompt")
    encoded.links["prompt"] = enhanced["prompt"]
    return picture("OmniGen2EnhancePrompt", graph, Row(loader, enhanced, encoded), before=others, runs=False)


def chat() -> HelpPicture:
    graph = Graph("")
    parts = built_in_parts(graph)
    loaded = graph.add("LoadImage", box=(260, 260), image=REFERENCE)
    talk = graph.add("OmniGen2Chat", box=(460, 0), model=parts.model, clip=parts.clip, vae=parts.vae, message="What color is the circle?", mode="text",
                     images__image_1=loaded["IMAGE"], seed=1, control_after_generate="fixed")
    return picture("OmniGen2Chat", graph, Row(Column(graph.nodes[0], loaded), talk))


def judged(node: str) -> HelpPicture:
    """A node that draws and looks at what it drew, with its rounds."""
    graph = Graph("")
    parts = built_in_parts(graph)
    settings = built_in_settings()
    values = {"count": 3} if node == "OmniGen2BestOfN" else {}
    drawn = graph.add(node, box=(420, 0), model=parts.model, clip=parts.clip, vae=parts.vae, negative_prompt="", seed=1,
                      prompt="A large red circle on the left and a small blue square on the right on a yellow background",
                      width=settings["default_width"], height=settings["default_height"], control_after_generate="fixed",
                      steps=settings["steps"], text_guidance=settings["text_guidance"], image_guidance=settings["image_guidance"], guidance_end=settings["guidance_end"], **values)
    shown = graph.add("PreviewImage", box=(260, 280), images=drawn["image"])
    return picture(node, graph, Row(drawn, shown), before=[graph.nodes[0]])


def _drawing(graph: Graph, parts, prompt: str, reference=None, **other) -> tuple[Node, Node, Node, Node]:
    settings = built_in_settings() | other
    encoded = encode(graph, parts, prompt, [reference] if reference else [], negative_prompt="", box=(320, 360),
                     width=settings["default_width"], height=settings["default_height"])
    sampled = sample(graph, parts.model, encoded, seed=1, control_after_generate="fixed", steps=settings["steps"], box=(300, 0),
                     text_guidance=settings["text_guidance"], image_guidance=settings["image_guidance"], guidance_end=settings["guidance_end"])
    decoded = graph.add("VAEDecode", box=(260, 0), samples=sampled["latent"], vae=parts.vae)
    return encoded, sampled, decoded, graph.add("PreviewImage", box=(260, 280), images=decoded["IMAGE"])


PICTURES = {
    "OmniGen2LoadFolder": load_folder,
    "OmniGen2Encode": encode_reference,
    "OmniGen2Sample": sampler,
    "OmniGen2Guider": lambda: custom_sampling("OmniGen2Guider"),
    "OmniGen2Sigmas": lambda: custom_sampling("OmniGen2Sigmas"),
    "OmniGen2Accelerate": accelerate,
    "OmniGen2Compile": compiled,
    "OmniGen2LoadDiffusionModel": lambda: published("OmniGen2LoadDiffusionModel"),
    "OmniGen2LoadEncoder": lambda: published("OmniGen2LoadEncoder"),
    "OmniGen2LoadVAE": lambda: published("OmniGen2LoadVAE"),
    "OmniGen2LoadLoRA": load_lora,
    "OmniGen2Ask": ask,
    "OmniGen2EnhancePrompt": enhance_prompt,
    "OmniGen2Chat": chat,
    "OmniGen2ReflectionLoop": lambda: judged("OmniGen2ReflectionLoop"),
    "OmniGen2BestOfN": lambda: judged("OmniGen2BestOfN"),
}

BOUNDS = """(ids) => {
    const areas = ids.map(id => app.graph.getNodeById(id).getBounding()), scale = app.canvas.ds.scale, [x0, y0] = app.canvas.ds.offset;
    const box = app.canvas.canvas.getBoundingClientRect();
    const left = Math.min(...areas.map(a => a[0])), top = Math.min(...areas.map(a => a[1]));
    const right = Math.max(...areas.map(a => a[0] + a[2])), bottom = Math.max(...areas.map(a => a[1] + a[3]));
    return {x: (left + x0) * scale + box.left, y: (top + y0) * scale + box.top, width: (right - left) * scale, height: (bottom - top) * scale};
}"""

SEED = "(seed) => app.graph.nodes.flatMap(n => n.widgets ?? []).filter(w => ['seed', 'noise_seed'].includes(w.name)).forEach(w => { w.value = seed })"

FRAME = """([ids, node, widest, highest]) => {
    const nodes = ids.map(id => app.graph.getNodeById(id));
    for (const other of app.graph.nodes) if (other.type === node) other.boxcolor = '#d9a441';
    const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1]));
    const width = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) - left;
    const height = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) - top;
    const scale = Math.min(1, widest / width, highest / height);
    app.canvas.background_image = null;
    app.canvas.show_info = false;
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [100 / scale - left, 140 / scale - top];
    app.canvas.setDirty(true, true);
}"""


def photograph(canvas: Canvas, shot: HelpPicture, run: bool) -> Image.Image:
    """The nodes that a help picture shows, as they stand on the canvas."""
    build(canvas, shot.graph)
    ids = [node.index + 1 for node in shot.shown]
    if run and shot.runs:
        # What a node says of its time is that of a run like any other, not of the first one.
        for seed in (2, 1):
            canvas.evaluate(SEED, seed)
            canvas.run()
    canvas.evaluate(FRAME, [ids, shot.graph.name, WIDEST - 2 * MARGIN, HIGHEST])
    canvas.page.wait_for_timeout(1500)
    area = canvas.evaluate(BOUNDS, ids)
    clip = {"x": area["x"] - MARGIN, "y": area["y"] - BADGE, "width": area["width"] + 2 * MARGIN, "height": area["height"] + BADGE + MARGIN}
    return Image.open(io.BytesIO(canvas.page.screenshot(clip=clip))).convert("RGB")


def save(image: Image.Image, path: Path, largest: int = LARGEST) -> None:
    """As a PNG of few colours, which keeps the text sharp, below `largest` bytes."""
    for colours in (256, 128, 64, 32):
        data = io.BytesIO()
        image.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
        if data.tell() <= largest:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getvalue())


def reference() -> Image.Image:
    """A picture of the built-in model's world, drawn without it: a large red circle in the middle on white."""
    size = built_in_settings()["default_width"]
    image = Image.new("RGB", (size, size), (246, 246, 246))
    ImageDraw.Draw(image).ellipse([0.357 * size, 0.357 * size, 0.643 * size, 0.643 * size], fill=(214, 40, 45))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="*", metavar="NODE", help="only these nodes")
    parser.add_argument("--still", action="store_true", help="run nothing")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder))
        server.save_input(REFERENCE, reference())
        for category, (name, _) in FILES.items():
            (server.models / category / name).touch()
        with server:
            browser = launch(playwright)
            canvas = Canvas(browser, server, width=1800, height=1100)
            for node in options.nodes or PICTURES:
                save(photograph(canvas, PICTURES[node](), not options.still), IMAGES / f"{node}.png")
                print(node)
            browser.close()


if __name__ == "__main__":
    main()
