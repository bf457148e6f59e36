"""What is to be drawn, and how a run has it drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Sequence

from PIL import Image

from ..errors import PromptError


@dataclass(frozen=True)
class Task:
    """The user's instruction, in any language, and the references that it speaks of, in their order.

    Raises PromptError for an empty instruction: there would be nothing to hold a picture against.
    """

    instruction: str
    references: tuple[Image.Image, ...] = ()

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise PromptError("The instruction is empty, so no picture can be judged by it; write what to draw.")
        object.__setattr__(self, "references", tuple(self.references))


class Drawer(Protocol):
    """Draws one picture. Sampler settings, model and sizes are its own; what it raises ends the run.

    Used as an editor, it gets the correction as prompt and the picture to correct as the only reference.
    """

    def __call__(self, prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image: ...


Editor = Drawer
"""A drawer that is given a picture and what to change in it. Most models take the same drawer for both."""
