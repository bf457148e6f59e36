"""From words and pictures to what the sampler reads: three conditionings and an empty latent."""

from __future__ import annotations

from typing import Sequence

import torch

import comfy.model_management
import node_helpers
from comfy_api.latest import io

from ..omnigen2_core.advice import notes_on_references, notes_on_size
from ..omnigen2_core.images import output_size, reference_size
from ..omnigen2_core.prompts import DEFAULT_NEGATIVE_PROMPT
from ..omnigen2_core.transformer import MAX_REFERENCES
from .host.notes import output_with_notes
from .host.prompt import encode_prompt, profile_of_clip
from .host.references import LATENT_CHANNELS, PIXELS_PER_LATENT, collect_pictures, encode_reference, require_vae


class OmniGen2Encode(io.ComfyNode):
    """Encodes the prompts and the references exactly as the reference implementation does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        images = io.Autogrow.TemplateNames(
            io.Image.Input(
                "image", optional=True, tooltip="A reference image. Every image of a batch counts as one reference."
            ),
            names=[f"image_{i}" for i in range(1, MAX_REFERENCES + 1)],
            min=0,
        )
        return io.Schema(
            node_id="OmniGen2Encode",
            display_name="OmniGen2 Encode",
            category="OmniGen2",
            description="Turns a prompt, a negative prompt and up to five reference images into the three "
            "conditionings that OmniGen2's guidance needs, and makes an empty latent of the right size.",
            search_aliases=["omnigen2 prompt", "omnigen2 edit", "omnigen2 text encode", "reference image"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="OmniGen2's encoder (Qwen2.5-VL 3B), from an OmniGen2 loader or from Load CLIP with "
                    "type omnigen2.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip='What to make, or what to change. Name references by their number, as in "the cat from '
                    'image 1". '
                    "Brackets are plain text here and never weights.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default=DEFAULT_NEGATIVE_PROMPT,
                    tooltip="What to keep away from. The default is the one that OmniGen2's authors use; it may be "
                    "empty.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Needed only with reference images, which enter the model as latents."
                ),
                io.Autogrow.Input(
                    "images",
                    template=images,
                    optional=True,
                    tooltip="Reference images, up to five in all: the picture to edit, or subjects to take over. "
                    "Image 1 of the prompt is the first.",
                ),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="Width of the picture to make, in pixels; cut down to a multiple of 16.",
                ),
                io.Int.Input(
                    "height",
                    default=1024,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="Height of the picture to make, in pixels; cut down to a multiple of 16.",
                ),
                io.Boolean.Input(
                    "match_reference",
                    default=True,
                    tooltip="With exactly one reference, make the picture in the reference's size and ignore width "
                    "and height. Best for edits.",
                ),
                io.Int.Input(
                    "max_pixels",
                    default=0,
                    min=0,
                    max=8192 * 8192,
                    advanced=True,
                    tooltip="Largest area of the picture and of each reference, in pixels; larger ones are scaled "
                    "down. 0 takes what suits the loaded model (1048576 for OmniGen2).",
                ),
                io.Int.Input(
                    "max_side",
                    default=0,
                    min=0,
                    max=8192,
                    advanced=True,
                    tooltip="Longest side of a reference, in pixels; larger ones are scaled down. 0 takes what "
                    "suits the loaded model (1024 for OmniGen2).",
                ),
                io.Boolean.Input(
                    "encoder_sees_images",
                    default=False,
                    advanced=True,
                    tooltip="Off, as in the authors' generation pipeline: the encoder reads only the prompt. On, as "
                    "in their chat: it also looks at the references. Needs an encoder file with its vision part.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many pictures to make at once."),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt with the references."),
                io.Conditioning.Output(
                    "negative_ref",
                    display_name="negative_ref",
                    tooltip="The negative prompt with the references; image guidance compares it with the one without.",
                ),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip="The negative prompt without references."
                ),
                io.Latent.Output(
                    "latent", display_name="latent", tooltip="An empty latent of the size that was settled on."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip,
        prompt,
        negative_prompt,
        width,
        height,
        match_reference=True,
        max_pixels=0,
        max_side=0,
        encoder_sees_images=False,
        batch_size=1,
        vae=None,
        images=None,
    ) -> io.NodeOutput:
        profile = profile_of_clip(clip)
        limits = {"max_pixels": max_pixels or profile.max_pixels, "multiple": profile.size_multiple}
        reference_limits = {**limits, "max_side": max_side or profile.max_side}
        pictures = collect_pictures(images, min(MAX_REFERENCES, profile.max_references))
        sizes = [picture.size for picture in pictures]
        read_as = [reference_size(*size, **reference_limits) for size in sizes]
        if pictures:
            require_vae(vae)

        positive = encode_prompt(clip, prompt, pictures if encoder_sees_images else (), chat=encoder_sees_images)
        negative = encode_prompt(clip, negative_prompt, chat=encoder_sees_images)
        notes = positive.notes("prompt") + negative.notes("negative prompt")

        made, notes_on_made = settle_size((width, height), read_as, match_reference, **limits)
        notes += notes_on_made
        notes += notes_on_references(prompt, sizes, profile.min_reference_side)

        latents = [encode_reference(vae, picture, **reference_limits) for picture in pictures]
        return output_with_notes(
            with_references(positive.conditioning, latents),
            with_references(negative.conditioning, latents),
            negative.conditioning,
            empty_latent(*made, batch_size),
            notes=notes,
        )


def settle_size(
    asked: tuple[int, int],
    read_as: Sequence[tuple[int, int]],
    match_reference: bool,
    *,
    max_pixels: int,
    multiple: int,
) -> tuple[tuple[int, int], list[str]]:
    """The size (width, height) of the picture to make, and notes where it is not what was asked for.

    asked, read_as: the size asked for, and those at which the references are read. match_reference: whether the size
    of a single reference is taken instead.
    """
    edited = read_as[0] if len(read_as) == 1 else None
    if match_reference and edited is not None:
        return edited, []
    made = output_size(*asked, max_pixels=max_pixels, multiple=multiple)
    return made, notes_on_size(asked, made, edited, multiple)


def with_references(conditioning: list, latents: list[torch.Tensor]) -> list:
    """The conditioning with reference latents [1, 16, h, w] in the VAE's own scale; itself if there are none."""
    if not latents:
        return conditioning
    return node_helpers.conditioning_set_values(conditioning, {"reference_latents": latents})


def empty_latent(width: int, height: int, batch_size: int) -> dict:
    """A LATENT of zeros for pictures of this size in pixels."""
    shape = (batch_size, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    samples = torch.zeros(
        shape, device=comfy.model_management.intermediate_device(), dtype=comfy.model_management.intermediate_dtype()
    )
    return {"samples": samples, "downscale_ratio_spacial": PIXELS_PER_LATENT}
