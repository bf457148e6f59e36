"""The rectified-flow objective: straight paths from noise (time 0) to image (time 1)."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..schedule import time_shift_factor


def draw_times(sizes: Sequence[tuple[int, int]], generator: torch.Generator, shift_base: float) -> Tensor:
    """Times [B] in 0..1: logistic of a standard normal, shifted toward noise by each sample's latent size (height, width)."""
    t = torch.sigmoid(torch.randn(len(sizes), generator=generator))
    m = torch.tensor([time_shift_factor(h, w, shift_base) for h, w in sizes], dtype=torch.float32)
    return t / (m - m * t + t)


def interpolate(image: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The point at `time` [B] on the paths from noise to image latents, both [B, C, h, w]."""
    t = time.view(-1, 1, 1, 1).to(image)
    return t * image + (1 - t) * noise


def flow_loss(velocity: Tensor, image: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the predicted velocity against image - noise.

    `weight` (>= 0, broadcast to velocity's shape [B, C, h, w]) says how much each element counts; only its proportions matter.
    """
    error = (velocity.float() - (image - noise).float()).square()
    return error.mean() if weight is None else (error * (weight / weight.mean())).mean()
