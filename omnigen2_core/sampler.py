"""The denoising loop. The library and the host both run this one."""

from __future__ import annotations

from typing import Callable

import torch

from .errors import SamplingError
from .guidance import Denoiser
from .solvers import make_solver

StepCallback = Callable[[int, torch.Tensor, torch.Tensor], None]
"""(step index, current estimate of the clean latents, latents after the step)."""


def sample(
    denoise: Denoiser,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    *,
    solver: str = "euler",
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Walk latents along the flow from `timesteps[0]` to `timesteps[-1]`.

    Args:
        denoise: Guided velocity (image - noise) for latents, time and step index.
        noise: Latents at `timesteps[0]`, [B, C, H, W]; pure noise when that time is 0, otherwise
            t * image + (1 - t) * noise. Kept in fp32 whatever dtype the model computes in.
        timesteps: Rising times in 0..1, [steps + 1]; see `schedule.timesteps`.
        solver: "euler" or "dpmpp_2m".
        callback: Called after every step; an exception that it raises ends the run.

    Returns:
        fp32 latents at the last time, same shape as `noise`.

    Raises:
        SamplingError: The times do not rise within 0..1, or the solver is unknown.
    """
    times = [float(t) for t in timesteps]
    if len(times) < 2 or not 0.0 <= times[0] or not times[-1] <= 1.0 or any(b < a for a, b in zip(times, times[1:])):
        raise SamplingError(f"A run needs two or more times that rise within 0..1, got {times}.")
    stepper = make_solver(solver)
    x = noise.float()
    for step, (t, t_next) in enumerate(zip(times, times[1:])):
        velocity = denoise(x, t, step).float()
        estimate = x + (1.0 - t) * velocity
        x = stepper.step(x, velocity, t, t_next)
        if callback is not None:
            callback(step, estimate, x)
    return x
