"""What is measured: a task at a size, and where its tokens lie."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..acceleration.protocol import Work
from ..guidance import Guidance, branches
from ..rope import SampleLayout

TASKS = {"t2i": 0, "edit": 1, "three": 3}
"""Text to image, an edit with one reference, and three references. References are as large as the picture."""

TITLES = {"t2i": "text to image", "edit": "edit, one reference", "three": "three references"}
SIZES = ((512, 512), (1024, 1024), (1536, 640))
"""Width and height in pixels."""
STEPS = (20, 50)

TEXT = 200
"""Tokens of a prompt, the template around it included; the negative prompt has as many."""

PIXELS = 16
"""A token is a square of so many pixels a side."""

_NAME = re.compile(r"(\w+)-(\d+)x(\d+)")


@dataclass(frozen=True)
class Case:
    """A picture with so many references, at a size in pixels, both sides multiples of 16."""

    references: int
    width: int
    height: int

    @property
    def task(self) -> str:
        """Its key in `TASKS`; two references have none."""
        return next(task for task, references in TASKS.items() if references == self.references)

    @property
    def name(self) -> str:
        """What the command calls it, such as "edit-1024x1024"."""
        return f"{self.task}-{self.width}x{self.height}"

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"{TITLES[self.task]}, {self.width}×{self.height}"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of the picture, and of each reference."""
        return self.height // PIXELS, self.width // PIXELS

    @property
    def image(self) -> int:
        """Tokens of the picture."""
        return self.grid[0] * self.grid[1]

    def has_references(self, branch: str) -> bool:
        """Whether a branch of the guidance sees references."""
        return self.references > 0 and branch != "uncond"

    def layout(self, branch: str) -> SampleLayout:
        """Where the tokens of a branch of the guidance lie."""
        return SampleLayout(TEXT, (self.grid,) * (self.references if self.has_references(branch) else 0), self.grid)

    @property
    def branches(self) -> tuple[str, ...]:
        """What a step evaluates."""
        return branches(Guidance(), 0, 1, self.references > 0)

    def plain_record(self, steps: int, guidance: Guidance = Guidance()) -> list[Work]:
        """A run that computes everything, as `acceleration.protocol.Run.record` tells of it."""
        return [
            Work(step, branch, "full", context=True)
            for step in range(steps)
            for branch in branches(guidance, step, steps, self.references > 0)
        ]


def parse(name: str) -> Case:
    """The case of this name. Raises ValueError for what is none, with what is."""
    match = _NAME.fullmatch(name)
    if not match or match[1] not in TASKS:
        raise ValueError(f"{name!r} is no case; write a task ({', '.join(TASKS)}) and a size, such as edit-1024x1024.")
    width, height = int(match[2]), int(match[3])
    if not width or not height or width % PIXELS or height % PIXELS:
        raise ValueError(f"{name!r} has sides of {width} and {height} pixels; both must be multiples of {PIXELS}.")
    return Case(TASKS[match[1]], width, height)


ALL = tuple(Case(references, *size) for size in SIZES for references in TASKS.values())
"""All that the tables hold."""

IN_HALF_AN_HOUR = tuple(parse(name) for name in ("t2i-512x512", "edit-512x512", "three-512x512"))
"""Those that fit half an hour on two cores, the rest of what is measured included."""
