"""Steps through a rectified flow. One solver object serves one run."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from .errors import SamplingError


class Solver(Protocol):
    """Moves latents from time t to t_next; may remember earlier steps of the same run."""

    def step(self, x: torch.Tensor, velocity: torch.Tensor, t: float, t_next: float) -> torch.Tensor:
        """Latents at `t_next`, from latents `x` and velocity (image - noise) at `t`, same shapes."""


class EulerSolver:
    """Follows the velocity in a straight line."""

    def step(self, x: torch.Tensor, velocity: torch.Tensor, t: float, t_next: float) -> torch.Tensor:
        """See `Solver.step`."""
        return x + (t_next - t) * velocity


class DPMSolverPP2M:
    """DPM-Solver++, second-order multistep, midpoint rule, for flows (alpha = t, sigma = 1 - t).

    The first step, and a step that ends at the image, are of first order: there the
    log signal-to-noise ratio is infinite.
    """

    def __init__(self) -> None:
        self._estimate: torch.Tensor | None = None
        self._log_snr = -math.inf

    def step(self, x: torch.Tensor, velocity: torch.Tensor, t: float, t_next: float) -> torch.Tensor:
        """See `Solver.step`."""
        estimate = x + (1.0 - t) * velocity
        log_snr = _log_snr(t)
        previous, previous_log_snr = self._estimate, self._log_snr
        self._estimate, self._log_snr = estimate, log_snr
        if t_next >= 1.0:
            return estimate
        if t_next == t:
            return x
        h = _log_snr(t_next) - log_snr
        target = estimate
        # r = (log_snr - previous_log_snr) / h; where it is infinite, the correction vanishes.
        if previous is not None and math.isfinite(previous_log_snr) and log_snr > previous_log_snr:
            r = (log_snr - previous_log_snr) / h
            target = estimate + (estimate - previous) / (2.0 * r)
        return ((1.0 - t_next) / (1.0 - t)) * x - t_next * math.expm1(-h) * target


def _log_snr(t: float) -> float:
    if t <= 0.0:
        return -math.inf
    if t >= 1.0:
        return math.inf
    return math.log(t) - math.log1p(-t)


SOLVERS: dict[str, type[Solver]] = {"euler": EulerSolver, "dpmpp_2m": DPMSolverPP2M}


def make_solver(name: str) -> Solver:
    """A fresh solver for one run.

    Raises:
        SamplingError: There is no solver of that name.
    """
    if name not in SOLVERS:
        raise SamplingError(f"There is no solver named {name!r}; choose one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]()
