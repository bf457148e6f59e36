"""What suits one family of weights: time shift, sizes, and default sampling settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Mapping

from .errors import CheckpointError


@dataclass(frozen=True)
class ModelProfile:
    """Settings that depend on the scale a model was trained at.

    The defaults describe the published OmniGen2 weights. A model folder may carry
    its own values in `omnigen2.json`.

    Attributes:
        name: Name shown to people.
        shift_base: Side of the square latent (in latent pixels) whose time shift is 1.
        size_multiple: Picture sides are multiples of this many pixels.
        max_pixels: Largest area of a reference or generated picture, in pixels.
        max_side: Longest side of a reference, in pixels.
        min_reference_side: References with a shorter side deserve a warning.
        default_width, default_height: Size of a generated picture, in pixels.
        steps: Denoising steps.
        text_guidance, image_guidance: Guidance scales; 1 means off.
        guidance_end: Share of the run, above 0, after which nothing is guided.
        max_text_tokens: Prompt tokens beyond this are cut off.
        max_references: Number of reference pictures the model knows.
        trained_reflection: Whether the weights were fine-tuned to reflect on their own pictures.
    """

    name: str = "OmniGen2"
    shift_base: float = 40.0
    size_multiple: int = 16
    max_pixels: int = 1024 * 1024
    max_side: int = 1024
    min_reference_side: int = 512
    default_width: int = 1024
    default_height: int = 1024
    steps: int = 50
    text_guidance: float = 5.0
    image_guidance: float = 2.0
    guidance_end: float = 1.0
    max_text_tokens: int = 1024
    max_references: int = 5
    trained_reflection: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, (str, bool)):
                valid = isinstance(value, type(field.default))
            else:
                whole = isinstance(field.default, int)
                number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
                valid = number and value > 0
            if not valid:
                raise CheckpointError(
                    f"The model profile gives {field.name} = {value!r}, which is not usable; "
                    f"correct omnigen2.json (the published model has {field.default!r})."
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelProfile":
        """Build a profile from parsed JSON; unknown keys are ignored, missing ones take the defaults.

        Raises:
            CheckpointError: A value has the wrong type, or a number is not positive.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON-ready values."""
        return asdict(self)


PUBLISHED = ModelProfile()
