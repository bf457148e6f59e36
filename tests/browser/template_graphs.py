"""The graphs of the templates: each for the published weights, and to try on the built-in model.

A template on the built-in model draws by itself the pictures that it then edits, refers to or asks about, so it needs
no files. The templates in which the encoder looks and speaks are in looking_graphs.py, those that save work in
accelerate_graphs.py.
"""
from __future__ import annotations

from typing import NamedTuple

from accelerate_graphs import built_in_accelerate, published_accelerate
from canvas_graph import Column, Graph, Group, Row
from looking_graphs import built_in_looking_templates, published_looking_templates
from template_parts import (
    BUILT_IN_LORA, FILES, IMAGE_BOX, LOADER_BOX, MODEL_FILES, NOTE_BOX, PICTURE_BOX, PROMPT_BOX, PUBLISHED_SEED, SAMPLER_BOX, WORLD, Drawing,
    built_in_parts, decode, download, encode, files_note, published_parts, sample,
)  # fmt: skip

# ---- for the published weights: the reference's own settings


def published_graph(name: str, about: str, prompt: str, pictures: int = 0, lora: bool = False, **encoding) -> Graph:
    """Text to image, or with `pictures` references."""
    graph = Graph(name)
    note = graph.note(about + files_note(*MODEL_FILES, *(["loras"] if lora else [])), NOTE_BOX)
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
        "Without a mask nothing changes." + files_note(*MODEL_FILES),
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
            "## With a LoRA\n\n**OmniGen2 Load LoRA** reads every naming in use; ComfyUI's own LoRA loader skips most OmniGen2 LoRAs "
            "with no more than a line in the log. This one, UMO, keeps several people apart in one picture.",
            "The person from image 1 and the person from image 2 are laughing together on a park bench, photograph.",
            pictures=2,
            lora=True,
        ),
        published_accelerate(),
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
        built_in_accelerate(),
    ]


def templates() -> list[Graph]:
    """All templates."""
    return [*built_in_templates(), *built_in_looking_templates(), *published_templates(), *published_looking_templates()]
