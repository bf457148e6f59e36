"""Drawing inside a node: OmniGen2 Encode, OmniGen2 Sampler and VAE Decode, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import comfy.model_management
from PIL import Image

from ..omnigen2_core.images import to_image_tensor, to_pil
from .encode import OmniGen2Encode
from .host.notes import NOTES
from .host.prompt import profile_of_clip
from .sampling import sample_latent


@dataclass
class HostDrawer:
    """A `Drawer` for native MODEL, CLIP and VAE. Made for one run.

    Attributes:
        encoding: Inputs of OmniGen2 Encode: the negative prompt, sizes and limits.
        sampling: Settings of `sample_latent`, all but the seed.
        editing: Those of them that are others in `edit`.
        notes: What the first pictures gave to say; it fills while drawing.
    """

    model: Any
    clip: Any
    vae: Any
    encoding: Mapping[str, Any]
    sampling: Mapping[str, Any]
    editing: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __call__(self, prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image:
        """Draws a prompt. Raises what those nodes raise, and ComfyUI's exception when the run is cancelled."""
        picture, notes = self._draw(prompt, references, seed, self.encoding, self.sampling)
        self.notes += notes
        return picture

    def edit(self, prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image:
        """As a call, in the size of the picture that is edited.

        `max_side` is a limit on what the user shows: a picture that was drawn may be longer, and stays as it is. There
        are no notes: they would advise about a reference that the user has not chosen.
        """
        longest = max(max(picture.size) for picture in references)
        encoding = {**self.encoding, "match_reference": True, "max_side": max(profile_of_clip(self.clip).max_side, longest)}
        return self._draw(prompt, references, seed, encoding, {**self.sampling, **self.editing})[0]

    def _draw(
        self,
        prompt: str,
        references: Sequence[Image.Image],
        seed: int,
        encoding: Mapping[str, Any],
        sampling: Mapping[str, Any],
    ) -> tuple[Image.Image, list[str]]:
        images = {f"image_{i}": to_image_tensor(picture) for i, picture in enumerate(references, start=1)}
        encoded = OmniGen2Encode.execute(self.clip, prompt, vae=self.vae, images=images, **encoding)
        positive, negative_ref, negative, latent = encoded.result
        samples, notes, _ = sample_latent(
            self.model, positive, negative_ref, negative, latent, seed=seed, **sampling
        )
        comfy.model_management.throw_exception_if_processing_interrupted()
        return to_pil(self.vae.decode(samples)[0]), encoded.ui[NOTES] + notes
