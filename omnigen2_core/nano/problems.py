"""What a search gives every candidate to draw, and who says whether a picture is right.

The built-in model has scenes of its world, judged by pixels. For other models see `own_tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from .score import BATCH, draw_tasks, judge_task
from .world import DEFAULT_SIZE, render


@dataclass(frozen=True)
class Problem:
    """One picture to draw. is_right: whether it shows what was asked for."""

    prompt: str
    references: tuple[Image.Image, ...]
    seed: int
    is_right: Callable[[Image.Image], bool]


class World(Protocol):
    """A source of problems. Problem i of a kind follows from the seed alone, however many are drawn.

    size: width and height of the pictures, None for what the pipeline takes by itself. kinds: for each kind of problem
    the number of its references. batch: how many problems are drawn together.
    """

    name: str
    size: tuple[int, int] | None
    kinds: Mapping[str, int]
    batch: int

    def available(self, kind: str, count: int) -> int:
        """How many there are of a kind if one wants `count`."""

    def draw(self, pipeline, kind: str, seed: int, start: int, count: int) -> list[Problem]:
        """Problems `start` to `start + count` of a kind."""


@dataclass(frozen=True)
class Scenes:
    """Scenes of the nano model's own world, in pictures of one size."""

    name: str
    size: tuple[int, int]
    kinds: Mapping[str, int]
    batch: int = BATCH

    def available(self, kind: str, count: int) -> int:
        """See `World`: whole batches, as many as one likes."""
        return -(-count // self.batch) * self.batch

    def draw(self, pipeline, kind: str, seed: int, start: int, count: int) -> list[Problem]:
        """See `World`. The seeds are those of `score.solve`, so a batch is the same there and here."""

        def problem(i: int, task) -> Problem:
            number = seed * 100_003 + i
            references = tuple(Image.fromarray(render(scene, *self.size)) for scene in task.references)
            return Problem(task.prompt, references, number, lambda picture: judge_task(task, number, picture).right)

        return [problem(i, task) for i, task in enumerate(draw_tasks(kind, seed, start + count)[start:], start)]


FIRST = Scenes("few things", DEFAULT_SIZE, {"t2i_2": 0, "edit": 1, "in_context_3": 3})
"""Presets are chosen with these."""
SECOND = Scenes("crowded", DEFAULT_SIZE, {"t2i_3": 0, "edit_3": 1, "in_context": 2})
"""The second world: one thing more in every picture that is drawn or edited, and another number of references.

It is as far as the built-in model honestly goes. Of other picture sizes, and with its LoRA, it gets too few pictures right,
by its judge's strict eyes, to tell one way of sampling from another.
"""


def draw_and_judge(pipeline, problems: Sequence[Problem], size: tuple[int, int] | None, **settings) -> tuple[list[Image.Image], str]:
    """Draws problems in one batch: their pictures, and "1" for each right one and "0" for each wrong one.

    `settings` go to the pipeline's `generate`.
    """
    pictures = pipeline.generate(
        [problem.prompt for problem in problems],
        references=[list(problem.references) for problem in problems],
        seeds=[problem.seed for problem in problems],
        size=size,
        **settings,
    )
    return pictures, "".join(str(int(problem.is_right(picture))) for problem, picture in zip(problems, pictures))
