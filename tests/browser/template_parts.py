"""What the graphs of the templates are made of: loaders, the nodes of a drawing, boxes and notes."""
from __future__ import annotations

import json
from pathlib import Path

from canvas_graph import Column, Graph, Group, Node, Output, Row

ROOT = Path(__file__).resolve().parent.parent.parent
BUILT_IN = "OmniGen2-nano (built in)"
BUILT_IN_LORA = "OmniGen2-nano framed (built in)"
MENDING_LORA = "OmniGen2-nano mending (built in)"
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


MODEL_FILES = ("diffusion_models", "text_encoders", "vae")


def files_note(*folders: str) -> str:
    """Where to get what, as the end of a note."""
    lines = [f"- models/{folder}: [{FILES[folder][0]}]({FILES[folder][1]})" for folder in folders]
    loaders = "the three loaders" if set(MODEL_FILES) <= set(folders) else "the loader"
    return "\n\n### Files\n\n" + "\n".join(lines) + (
        "\n\nThe folder that OmniGen2's authors publish works too: put it into models/diffusers and use **OmniGen2 Load Folder** "
        f"in place of {loaders}."
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
    clip = published_encoder(graph)
    vae = graph.add("OmniGen2LoadVAE", box=LOADER_BOX, vae_name=FILES["vae"][0], models=[download("vae")])
    return Parts([model, clip, vae], model["model"], clip["clip"], vae["vae"])


def published_encoder(graph: Graph) -> Node:
    """The encoder alone: it is all that looking and writing need."""
    return graph.add("OmniGen2LoadEncoder", box=LOADER_BOX, text_encoder=FILES["text_encoders"][0], models=[download("text_encoders")])


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


def built_in_drawing() -> dict:
    """The same, as the inputs of a node that draws."""
    settings = built_in_settings()
    drawing = {key: settings[key] for key in ("steps", "text_guidance", "image_guidance", "guidance_end")}
    return {"negative_prompt": "", "width": settings["default_width"], "height": settings["default_height"], **drawing}


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


# ---- for the published weights

PUBLISHED_SEED = {"seed": 42, "control_after_generate": "randomize"}
PICTURE_BOX = (560, 640)
IMAGE_BOX = (300, 320)
NOTE_BOX = (332, 440)
PROMPT_BOX = (400, 460)
SAMPLER_BOX = (400, 0)


# ---- on the built-in model

WORLD = (
    "The built-in model knows eight colours (red, orange, yellow, green, blue, purple, white, black), six shapes (circle, square, triangle, diamond, cross, "
    "ring), large and small, and nine places (*at the top left*, *at the top*, ... *in the middle*, ... *at the bottom right*). Chinese works too: "
    "*蓝色背景，左上角有一个大红色圆形*."
)


ENLARGED = 4
"""A picture of the built-in model is 96 pixels wide; the canvas shows it this many times larger."""


class Drawing:
    """Encode, sample, decode and show: the nodes in a frame, and the IMAGE that comes of them.

    latent: what is sampled in place of an empty one. original: (IMAGE, MASK) that is put back where the mask is black.
    sampling: the sampler's settings that are not those that suit the model.
    """

    def __init__(
        self, graph: Graph, parts: Parts, title: str, prompt: str, images: list[Output] = (), *, seed: int = 1, final: bool = False,
        model: Output | None = None, latent: Output | None = None, original: tuple[Output, Output] | None = None, **sampling,
    ):  # fmt: skip
        settings = built_in_settings()
        size = {"width": settings["default_width"], "height": settings["default_height"]}
        encoded = encode(graph, parts, prompt, images, negative_prompt="", box=(320, 400), **size)
        suited = {key: settings[key] for key in ("steps", "text_guidance", "image_guidance", "guidance_end")}
        sampled = sample(
            graph, model or parts.model, encoded, latent, seed=seed, control_after_generate="randomize" if final else "fixed",
            **suited | sampling, box=(270, 0),
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
