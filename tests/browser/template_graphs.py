"""The graphs of the templates: each for the published weights, and to try on the built-in model.

A template on the built-in model draws by itself the pictures that it then edits or refers to, so it needs no files.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from canvas_graph import Column, Graph, Group, Node, Output, Row

ROOT = Path(__file__).resolve().parent.parent.parent
BUILT_IN = "OmniGen2-nano (built in)"
BUILT_IN_LORA = "OmniGen2-nano framed (built in)"
BUILT_IN_SETTINGS = ROOT / "omnigen2_core/nano/weights/OmniGen2-nano/omnigen2.json"
HUGGING_FACE = "https://huggingface.co/{}/resolve/main/{}"
REPACKAGED = "Comfy-Org/Omnigen2_ComfyUI_repackaged"

FILES = {
    "diffusion_models": ("omnigen2_fp16.safetensors", HUGGING_FACE.format(REPACKAGED, "split_files/diffusion_models/omnigen2_fp16.safetensors")),
    "text_encoders": ("qwen_2.5_vl_fp16.safetensors", HUGGING_FACE.format(REPACKAGED, "split_files/text_encoders/qwen_2.5_vl_fp16.safetensors")),
    "vae": ("ae.safetensors", HUGGING_FACE.format("Comfy-Org/Lumina_Image_2.0_Repackaged", "split_files/vae/ae.safetensors")),
    "loras": ("UMO_OmniGen2.safetensors", HUGGING_FACE.format("bytedance-research/UMO", "UMO_OmniGen2.safetensors")),
}
"""What the templates for the published weights need, by folder: name and address."""


def files_note(*folders: str) -> str:
    """Where to get what, as the end of a note."""
    lines = [f"- models/{folder}: [{FILES[folder][0]}]({FILES[folder][1]})" for folder in ("diffusion_models", "text_encoders", "vae", *folders)]
    return "\n\n### Files\n\n" + "\n".join(lines) + (
        "\n\nThe folder that OmniGen2's authors publish works too: put it into models/diffusers and use **Load OmniGen2 Folder** "
        "in place of the three loaders."
    )


LOADER_BOX = (300, 120)
"""High enough for what Nodes 2.0 adds to a node: the pack's name and the switch for advanced inputs."""


class Parts:
    """The loaders of a graph and what they give."""

    def __init__(self, nodes: list[Node], model: Output, clip: Output, vae: Output):
        self.group = Group("Model", *nodes)
        self.model, self.clip, self.vae = model, clip, vae


def published_parts(graph: Graph) -> Parts:
    """The three files that ComfyUI's own OmniGen2 templates use, in our loaders."""
    model = graph.add("OmniGen2LoadDiffusionModel", box=LOADER_BOX, unet_name=FILES["diffusion_models"][0], models=[download("diffusion_models")])
    clip = graph.add("OmniGen2LoadEncoder", box=LOADER_BOX, text_encoder=FILES["text_encoders"][0], models=[download("text_encoders")])
    vae = graph.add("OmniGen2LoadVAE", box=LOADER_BOX, vae_name=FILES["vae"][0], models=[download("vae")])
    return Parts([model, clip, vae], model["model"], clip["clip"], vae["vae"])


def built_in_parts(graph: Graph) -> Parts:
    """The model that comes with the pack."""
    folder = graph.add("OmniGen2LoadFolder", box=(300, 165), folder=BUILT_IN)
    return Parts([folder], folder["model"], folder["clip"], folder["vae"])


def download(folder: str) -> dict:
    """An entry by which the frontend offers a missing file."""
    name, url = FILES[folder]
    return {"name": name, "url": url, "directory": folder}


def built_in_settings() -> dict:
    """Steps, guidance and size that the built-in model says suit it."""
    return json.loads(BUILT_IN_SETTINGS.read_text(encoding="utf-8"))


def encode(graph: Graph, parts: Parts, prompt: str, images: list[Output] = (), **more) -> Node:
    """An encode node with its references; only with references does it need the VAE."""
    if images:
        more["vae"] = parts.vae
    references = {f"images__image_{i + 1}": image for i, image in enumerate(images)}
    return graph.add("OmniGen2Encode", clip=parts.clip, prompt=prompt, **references, **more)


def sample(graph: Graph, model: Output, encoded: Node, latent: Output | None = None, **more) -> Node:
    return graph.add(
        "OmniGen2Sample", model=model, positive=encoded["positive"], negative_ref=encoded["negative_ref"],
        negative=encoded["negative"], latent=latent or encoded["latent"], **more,
    )


def decode(graph: Graph, parts: Parts, sampled: Node) -> Node:
    return graph.add("VAEDecode", samples=sampled["latent"], vae=parts.vae)


# ---- for the published weights: the reference's own settings

PUBLISHED_SEED = {"seed": 42, "control_after_generate": "randomize"}
PICTURE_BOX = (560, 640)
IMAGE_BOX = (300, 320)
NOTE_BOX = (332, 440)
PROMPT_BOX = (400, 460)
SAMPLER_BOX = (400, 0)


def published_graph(name: str, about: str, prompt: str, pictures: int = 0, lora: bool = False, **encoding) -> Graph:
    """Text to image, or with `pictures` references."""
    graph = Graph(name)
    note = graph.note(about + files_note(*(["loras"] if lora else [])), NOTE_BOX)
    parts = published_parts(graph)
    loaded = [graph.add("LoadImage", f"Image {i + 1}", IMAGE_BOX, image="example.png") for i in range(pictures)]
    encoded = encode(graph, parts, prompt, [image["IMAGE"] for image in loaded], box=PROMPT_BOX, **encoding)
    model, lora_group = parts.model, []
    if lora:
        loader = graph.add("OmniGen2LoadLoRA", box=LOADER_BOX, model=model, lora_name=FILES["loras"][0], models=[download("loras")])
        model, lora_group = loader["model"], [Group("LoRA", loader)]
    sampled = sample(graph, model, encoded, box=SAMPLER_BOX, **PUBLISHED_SEED)
    decoded = decode(graph, parts, sampled)
    saved = graph.add("SaveImage", images=decoded["IMAGE"], filename_prefix="OmniGen2", box=PICTURE_BOX)
    references = [Group("Images", *loaded)] if loaded else []
    graph.layout = Row(
        Column(note, parts.group), *([Column(*references, *lora_group)] if references else []),
        Column(Group("Prompt", encoded), Group("Sampling", sampled)), Group("Picture", decoded, saved),
    )  # fmt: skip
    return graph


def published_masked_edit() -> Graph:
    graph = Graph("OmniGen2-masked-edit")
    note = graph.note(
        "## Edit only where the mask is\n\n"
        "Right-click the image, **Open in Mask Editor**, and paint over what may change. The prompt says what to do; "
        "everything outside the mask stays exactly as it was: the sampler leaves it alone, and the last node puts the original pixels back.\n\n"
        "Without a mask nothing changes." + files_note(),
        NOTE_BOX,
    )
    parts = published_parts(graph)
    loaded = graph.add("LoadImage", "Image with a mask", IMAGE_BOX, image="example.png")
    scaled = graph.add("ImageScaleToTotalPixels", image=loaded["IMAGE"], upscale_method="lanczos", megapixels=1.0, resolution_steps=16)
    encoded = encode(graph, parts, "Replace it with a bunch of sunflowers.", [scaled["IMAGE"]], box=PROMPT_BOX)
    original = graph.add("VAEEncode", pixels=scaled["IMAGE"], vae=parts.vae)
    masked = graph.add("SetLatentNoiseMask", samples=original["LATENT"], mask=loaded["MASK"])
    sampled = sample(graph, parts.model, encoded, masked["LATENT"], box=SAMPLER_BOX, **PUBLISHED_SEED)
    decoded = decode(graph, parts, sampled)
    pasted = graph.add("ImageCompositeMasked", "Original outside the mask", destination=scaled["IMAGE"], source=decoded["IMAGE"], mask=loaded["MASK"])
    saved = graph.add("SaveImage", images=pasted["IMAGE"], filename_prefix="OmniGen2", box=PICTURE_BOX)
    graph.layout = Row(
        Column(note, parts.group), Column(Group("Image and mask", loaded, scaled), Group("Latent with the mask", original, masked)),
        Column(Group("Prompt", encoded), Group("Sampling", sampled)), Group("Picture", decoded, pasted, saved),
    )  # fmt: skip
    return graph


def published_templates() -> list[Graph]:
    return [
        published_graph(
            "OmniGen2-text-to-image",
            "## Text to image\n\nWrite what to make, choose a size, press **Run**. The settings are those of OmniGen2's authors: "
            "50 steps, text guidance 5.",
            "A red fox sitting in fresh snow at the edge of a birch forest, soft morning light, shallow depth of field, photograph.",
        ),
        published_graph(
            "OmniGen2-edit",
            "## Edit an image\n\nLoad an image and say what to change; the result keeps the image's size. More **image_guidance** keeps more of "
            "the image, more **text_guidance** follows the words more. The authors advise 1.2 to 2 for edits.",
            "Change the background to a sunny beach.",
            pictures=1,
        ),
        published_graph(
            "OmniGen2-in-context-two-references",
            "## A new picture from two images\n\nLoad two images and name them in the prompt by their numbers. With several images the size "
            "comes from **width** and **height**. The authors advise an **image_guidance** of 2.5 to 3 where the likeness is too weak.",
            "The character from image 1 and the character from image 2 are sitting side by side at a small table in a sunlit street café.",
            pictures=2,
        ),
        published_graph(
            "OmniGen2-in-context-three-references",
            "## A new picture from three images\n\nName the images in the prompt by their numbers, here a character, a thing and a place. Up to five "
            "images can be connected. The authors advise an **image_guidance** of 2.5 to 3 where the likeness is too weak.",
            "The character from image 1 is holding the object from image 2 and walking through the place in image 3, evening light.",
            pictures=3,
        ),
        published_masked_edit(),
        published_graph(
            "OmniGen2-LoRA",
            "## With a LoRA\n\n**OmniGen2 Load LoRA** reads every naming in use; ComfyUI's own LoRA loader skips most OmniGen2 LoRAs silently. "
            "This one, UMO, keeps several people apart in one picture.",
            "The person from image 1 and the person from image 2 are laughing together on a park bench, photograph.",
            pictures=2,
            lora=True,
        ),
    ]


class Blueprint(NamedTuple):
    """A graph that becomes one subgraph. promoted: (node type, widget) shown on it; kept_outside: node types left out."""

    graph: Graph
    description: str
    promoted: list[tuple[str, str]]
    kept_outside: list[str]


def blueprints() -> list[Blueprint]:
    edit = published_graph("OmniGen2 edit", "", "Change the background to a sunny beach.", pictures=1)
    promoted = [
        ("OmniGen2Encode", "prompt"),
        *(("OmniGen2Sample", name) for name in ("seed", "steps", "text_guidance", "image_guidance")),
        ("OmniGen2LoadDiffusionModel", "unet_name"), ("OmniGen2LoadEncoder", "text_encoder"), ("OmniGen2LoadVAE", "vae_name"),
    ]  # fmt: skip
    description = "Edits an image as a prompt says, with OmniGen2 and its authors' settings."
    return [Blueprint(edit, description, promoted, ["MarkdownNote", "LoadImage", "SaveImage"])]


# ---- on the built-in model

ENLARGED = 4
"""A picture of the built-in model is 96 pixels wide; the canvas shows it this many times larger."""


class Drawing:
    """Encode, sample, decode and show: the nodes in a frame, and the IMAGE that comes of them.

    latent: what is sampled in place of an empty one. original: (IMAGE, MASK) that is put back where the mask is black.
    """

    def __init__(
        self, graph: Graph, parts: Parts, title: str, prompt: str, images: list[Output] = (), *, seed: int = 1, final: bool = False,
        model: Output | None = None, latent: Output | None = None, original: tuple[Output, Output] | None = None,
    ):  # fmt: skip
        settings = built_in_settings()
        size = {"width": settings["default_width"], "height": settings["default_height"]}
        encoded = encode(graph, parts, prompt, images, negative_prompt="", box=(320, 400), **size)
        sampled = sample(
            graph, model or parts.model, encoded, latent, seed=seed, control_after_generate="randomize" if final else "fixed",
            steps=settings["steps"], text_guidance=settings["text_guidance"], image_guidance=settings["image_guidance"],
            guidance_end=settings["guidance_end"], box=(270, 0),
        )  # fmt: skip
        decoded = graph.add("VAEDecode", box=(260, 0), samples=sampled["latent"], vae=parts.vae)
        self.image, last = decoded["IMAGE"], [decoded]
        if original:
            pasted = graph.add("ImageCompositeMasked", "Original outside the mask", (260, 0), destination=original[0], source=self.image, mask=original[1])
            self.image, last = pasted["IMAGE"], [decoded, pasted]
        enlarged = graph.add("ImageScaleBy", "Enlarge for display", (260, 110), image=self.image, upscale_method="lanczos", scale_by=ENLARGED)
        shown = graph.add("PreviewImage", box=(380, 420) if final else (260, 270), images=enlarged["IMAGE"])
        if final:
            saved = graph.add("SaveImage", images=self.image, filename_prefix="OmniGen2-nano", box=(260, 310))
            columns = [Column(*last, enlarged), shown, saved] if original else [Column(*last, saved), Column(enlarged, shown)]
        else:
            columns = [Column(*last, enlarged, shown)]
        self.group = Group(title, Row(encoded, sampled, *columns))


def built_in_text_to_image() -> Graph:
    graph = Graph("Try-it-text-to-image")
    note = graph.note(
        "## Try it: text to image\n\nPress **Run**. The built-in model draws coloured shapes on a coloured ground in seconds, without a graphics "
        "card: it has OmniGen2's architecture and runs through the same nodes, only much smaller.\n\n" + WORLD
    )
    parts = built_in_parts(graph)
    drawing = Drawing(graph, parts, "Draw", "A large red circle at the top left and a small blue square at the bottom right on a yellow background", final=True)
    graph.layout = Row(Column(note, parts.group), drawing.group)
    return graph


def built_in_edit() -> Graph:
    graph = Graph("Try-it-edit")
    note = graph.note(
        "## Try it: edit\n\nThe built-in model draws a picture, then changes it as told. The first seed is fixed, so only the edit runs again.\n\n"
        "Say what to do: *make the green triangle purple*, *turn the triangle into a ring*, *move the red circle to the bottom left*, "
        "*add a small white square at the top*, *remove the red circle*, *change the background to blue*.\n\n" + WORLD
    )
    parts = built_in_parts(graph)
    source = Drawing(graph, parts, "1. Draw a picture", "A large green triangle in the middle and a large red circle at the top left on a white background")
    edited = Drawing(graph, parts, "2. Edit it", "Make the green triangle purple", [source.image], final=True)
    graph.layout = Row(Column(note, parts.group), Column(source.group, edited.group))
    return graph


IN_CONTEXT_SCENES = (
    "A large red ring in the middle on a white background",
    "A small blue cross on the left on a yellow background",
    "A large green diamond on the right on a black background",
)


def built_in_in_context(count: int, prompt: str) -> Graph:
    number = {2: "two", 3: "three"}[count]
    graph = Graph(f"Try-it-in-context-{number}-references")
    note = graph.note(
        f"## Try it: a new picture from {number} others\n\nThe built-in model draws {number} pictures with one shape each, then puts their shapes into a new "
        "picture. The prompt names them by number: *the shape from image 1 at the top*. Shape, colour and size come from the images, place "
        "and background from the prompt.\n\n" + WORLD
    )
    parts = built_in_parts(graph)
    sources = [Drawing(graph, parts, f"{i + 1}. Draw image {i + 1}", scene) for i, scene in enumerate(IN_CONTEXT_SCENES[:count])]
    combined = Drawing(graph, parts, f"{count + 1}. Put them together", prompt, [source.image for source in sources], final=True)
    frames = [drawing.group for drawing in (*sources, combined)]
    first, second = Row(*frames[:2]), Row(*frames[2:])
    about = Column(note, parts.group)
    graph.layout = Row(about, Column(first, second)) if count == 2 else Column(Row(about, first), second)
    return graph


def built_in_masked_edit() -> Graph:
    graph = Graph("Try-it-masked-edit")
    note = graph.note(
        "## Try it: edit only where the mask is\n\nThe mask is white on the right half of the picture. The prompt changes what is there, and nothing "
        "else can change: the sampler leaves the rest alone, and the last node puts the original pixels back.\n\n" + WORLD
    )
    parts = built_in_parts(graph)
    source = Drawing(graph, parts, "1. Draw a picture", "A large red circle on the left and a large blue square on the right on a white background")
    black = graph.add("SolidMask", "Black: keep", value=0.0, width=96, height=96)
    white = graph.add("SolidMask", "White: change", value=1.0, width=48, height=96)
    mask = graph.add("MaskComposite", "Mask of the right half", destination=black["MASK"], source=white["MASK"], x=48, y=0, operation="add")
    latent = graph.add("VAEEncode", pixels=source.image, vae=parts.vae)
    masked = graph.add("SetLatentNoiseMask", samples=latent["LATENT"], mask=mask["MASK"])
    edited = Drawing(
        graph, parts, "3. Edit inside the mask", "Make the blue square green", [source.image],
        final=True, latent=masked["LATENT"], original=(source.image, mask["MASK"]),
    )  # fmt: skip
    masks = Group("2. Mask the picture", Row(Column(black, white), Column(mask, latent, masked)))
    graph.layout = Row(Column(note, parts.group), Column(Row(source.group, masks), edited.group))
    return graph


def built_in_lora() -> Graph:
    graph = Graph("Try-it-LoRA")
    note = graph.note(
        "## Try it: with a LoRA\n\nThis small LoRA was trained on framed pictures: it puts a frame around whatever the built-in model draws. "
        "Set **strength** to 0, or bypass the node, and the frame is gone.\n\n" + WORLD
    )
    parts = built_in_parts(graph)
    lora = graph.add("OmniGen2LoadLoRA", box=LOADER_BOX, model=parts.model, lora_name=BUILT_IN_LORA, strength=1.0)
    prompt = "A large red ring in the middle on a blue background"
    drawing = Drawing(graph, parts, "Draw", prompt, final=True, model=lora["model"])
    graph.layout = Row(Column(note, parts.group), Group("LoRA", lora), drawing.group)
    return graph


WORLD = (
    "It knows eight colours (red, orange, yellow, green, blue, purple, white, black), six shapes (circle, square, triangle, diamond, cross, "
    "ring), large and small, and nine places (*at the top left*, *at the top*, ... *in the middle*, ... *at the bottom right*). Chinese works too: "
    "*蓝色背景，左上角有一个大红色圆形*."
)


def built_in_templates() -> list[Graph]:
    return [
        built_in_text_to_image(),
        built_in_edit(),
        built_in_in_context(2, "Put the shape from image 1 at the top left and the shape from image 2 at the bottom right on a green background"),
        built_in_in_context(
            3, "Put the shape from image 1 at the top left, the shape from image 2 in the middle and the shape from image 3 at the bottom right on a purple background"
        ),
        built_in_masked_edit(),
        built_in_lora(),
    ]


def templates() -> list[Graph]:
    """All templates, in the order in which the README lists them."""
    return [*built_in_templates(), *published_templates()]
