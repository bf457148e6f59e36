"""Text and image guidance: which predictions a step needs, and how they are combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Literal, Mapping, Sequence

import torch

from .errors import OmniGen2Error

Branch = Literal["cond", "ref", "uncond"]
"""cond: prompt and references; ref: negative prompt and references; uncond: negative prompt alone."""

Denoiser = Callable[[torch.Tensor, float, int], torch.Tensor]
"""(latents [B, C, H, W], time 0..1, step index) -> guided velocity [B, C, H, W]."""

Predictor = Callable[[Branch, torch.Tensor, float, int], torch.Tensor]
"""(branch, latents, time, step index) -> velocity of that branch."""

Ask = Callable[[Sequence[Branch]], Mapping[Branch, torch.Tensor]]
"""Gives the velocities of these branches at one place of the run."""

AskThrough = Callable[[Sequence[Branch], int, Ask], Mapping[Branch, torch.Tensor]]
"""(branches, step index, what evaluates them) -> the velocities of all, some of which need not be evaluated."""


@dataclass(frozen=True)
class Guidance:
    """How strongly a run follows its prompt and its references.

    Attributes:
        text: Text guidance scale; at 1 or below all guidance is off.
        image: Image guidance scale; counts only above 1 and with references.
        range: First and last share of the run (step index / steps) that is guided, both included.
    """

    text: float = 5.0
    image: float = 2.0
    range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        start, end = self.range
        if not 0.0 <= start <= end <= 1.0:
            raise OmniGen2Error(
                f"The guidance range is {start} to {end}; let it start and end within 0..1, and not start after its end."
            )


def branches(guidance: Guidance, step: int, steps: int, has_references: bool) -> tuple[Branch, ...]:
    """The predictions that step `step` of `steps` needs; nothing else has to be computed.

    Without references there are never more than two, outside the guidance range there is one.
    """
    start, end = guidance.range
    if guidance.text <= 1.0 or not start <= step / steps <= end:
        return ("cond",)
    if has_references and guidance.image > 1.0:
        return ("cond", "ref", "uncond")
    return ("cond", "uncond")


def combine(predictions: Mapping[Branch, torch.Tensor], guidance: Guidance) -> torch.Tensor:
    """The guided velocity, from the predictions that `branches` asked for.

    Also holds for predictions of the clean image, since both are linear in the velocity.
    """
    cond = predictions["cond"]
    if "uncond" not in predictions:
        return cond
    uncond = predictions["uncond"]
    if "ref" not in predictions:
        return uncond + guidance.text * (cond - uncond)
    ref = predictions["ref"]
    return uncond + guidance.image * (ref - uncond) + guidance.text * (cond - ref)


def guided_denoiser(
    predict: Predictor, guidance: Guidance, *, steps: int, has_references: bool, through: AskThrough | None = None
) -> Denoiser:
    """A denoiser for `sampler.sample` that asks `predict` for no more than each step needs.

    through: may ask for less, as `acceleration.protocol.Run.predict` does.
    """

    def denoise(x: torch.Tensor, t: float, step: int) -> torch.Tensor:
        def ask(some: Sequence[Branch]) -> Mapping[Branch, torch.Tensor]:
            return {branch: predict(branch, x, t, step) for branch in some}

        wanted = branches(guidance, step, steps, has_references)
        return combine(ask(wanted) if through is None else through(wanted, step, ask), guidance)

    return denoise
