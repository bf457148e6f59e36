"""Times of a rectified-flow run: 0 is noise, 1 is the image; sigma is 1 - t."""

from __future__ import annotations

import math
from typing import Literal, Sequence

import torch

from .errors import SamplingError

Shift = Literal["auto"] | float | None


def time_shift_factor(latent_h: int, latent_w: int, base: float = 40.0) -> float:
    """Size-dependent shift m: larger pictures spend more of the run near the noise.

    `latent_h` and `latent_w` are latent pixels (picture side / 8), not patches; `base` is the
    side of the square latent that needs no shift. A 1024x1024 picture gives m = 3.2.
    """
    return math.sqrt(latent_h * latent_w) / base


def timesteps(
    steps: int,
    latent_h: int,
    latent_w: int,
    *,
    shift: Shift = "auto",
    base: float = 40.0,
    denoise: float = 1.0,
) -> torch.Tensor:
    """Times visited by a run of `steps` steps, fp32 [steps + 1] on the CPU, rising to 1.

    Args:
        steps: Number of denoising steps, at least 1.
        latent_h, latent_w: Latent size in latent pixels; used by the automatic shift.
        shift: "auto" takes `time_shift_factor`, a number is the factor itself
            (ComfyUI's native model uses 2.6), None leaves the times evenly spaced.
        base: See `time_shift_factor`.
        denoise: Share of the whole path that is walked, above 0 and at most 1. Below 1 the run
            starts later and its `steps` steps are the last ones of a longer schedule.

    Raises:
        SamplingError: `steps`, `shift` or `denoise` is out of range.
    """
    if steps < 1:
        raise SamplingError(f"A run needs at least 1 step, got {steps}.")
    if not 0.0 < denoise <= 1.0:
        raise SamplingError(f"denoise is {denoise}; give a number above 0 and at most 1.")
    total = max(steps, int(steps / denoise))
    # t is rounded to fp32 before the shift and again after it, the shift itself is float64:
    # this order reproduces the reference bit for bit.
    even = torch.tensor([i / total for i in range(total)], dtype=torch.float32).double()
    factor = _shift_factor(shift, latent_h, latent_w, base)
    if factor is not None:
        even = even / (factor - factor * even + even)
    return torch.cat([even.float(), torch.ones(1)])[-(steps + 1):]


def _shift_factor(shift: Shift, latent_h: int, latent_w: int, base: float) -> float | None:
    if shift is None:
        return None
    if shift == "auto":
        return time_shift_factor(latent_h, latent_w, base)
    if isinstance(shift, str) or not shift > 0 or not math.isfinite(shift):
        raise SamplingError(f"shift is {shift!r}; give 'auto', None or a number above 0.")
    return float(shift)


def custom_timesteps(times: Sequence[float]) -> torch.Tensor:
    """A run through the given times, unshifted, ending at 1: fp32 [len(times) + 1]."""
    return torch.cat([torch.as_tensor(times, dtype=torch.float32).cpu(), torch.ones(1)])


def sigmas(times: torch.Tensor) -> torch.Tensor:
    """ComfyUI's noise levels for these times: fp32, 1 is noise, 0 is the image."""
    return 1.0 - times.float()


def step_at(sigma: float, run_sigmas: Sequence[float] | torch.Tensor) -> int:
    """Index of the step of a run that a model call at `sigma` belongs to.

    `run_sigmas` falls from the first noise level to the last, [steps + 1]. Solvers that look
    between two levels (Heun, res_multistep) belong to the step that they are inside of.
    """
    levels = [float(level) for level in run_sigmas]
    tolerance = 1e-6
    passed = sum(1 for level in levels[:-1] if level >= sigma - tolerance)
    return max(passed - 1, 0)
