"""Ready-made questions about pictures."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import PromptError


@dataclass(frozen=True)
class Preset:
    """A question of a kind that people often ask.

    Attributes:
        title: The kind, as shown to people.
        question: What the model is asked.
        images: How many pictures it is asked about at once.
        max_new_tokens: Room that its answers need.
    """

    title: str
    question: str
    images: int = 1
    max_new_tokens: int = 256

    def check(self, images: int) -> None:
        """Raises PromptError when the question cannot be asked about so many pictures."""
        if images != self.images:
            raise PromptError(
                f"The preset {self.title!r} is about {self.images} image{'s' * (self.images > 1)} at a time and got "
                f"{images}; connect as many, or write the question yourself."
            )


PRESETS = {
    "caption_short": Preset("Caption, short", "Describe this image in one short sentence.", max_new_tokens=64),
    "caption_dense": Preset(
        "Caption, dense",
        "Describe this image in detail, in one paragraph: every subject with its looks and pose, how they are placed, "
        "the surroundings, the light, the colours and the style. State only what can be seen.",
        max_new_tokens=512,
    ),
    "tags": Preset(
        "Tags",
        "List tags for this image: its subjects and their attributes, the setting, the composition, the light and the "
        "style. Write short lower-case phrases with commas between them, and nothing else.",
    ),
    "compare": Preset(
        "Compare two images",
        "Compare image 1 with image 2. Say in one sentence what both show. Then list the differences, one a line, each "
        "with what it is in image 1 and what it is in image 2.",
        images=2,
        max_new_tokens=512,
    ),
    "objects": Preset(
        "List objects with places",
        "List every object in this image, one a line. Write for each what it is, a colon, and where in the image it "
        "is, such as top left, centre or bottom right. Write nothing else.",
        max_new_tokens=512,
    ),
    "read_text": Preset(
        "Read text",
        "Write out all text in this image exactly as it stands there, line by line in the order in which it is read. "
        "Do not translate or correct it. If there is no text, answer: no text",
        max_new_tokens=1024,
    ),
}
"""By the name under which a workflow keeps the choice."""
