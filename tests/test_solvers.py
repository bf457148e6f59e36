"""Euler and DPM-Solver++(2M) on flows whose exact path is known."""

import math

import pytest
import torch

from omnigen2_core.errors import SamplingError
from omnigen2_core.sampler import sample
from omnigen2_core.schedule import timesteps
from omnigen2_core.solvers import DPMSolverPP2M, EulerSolver, make_solver


def gaussian_flow_velocity(x: torch.Tensor, t: float, spread: float = 0.3) -> torch.Tensor:
    """Exact velocity of the flow from a unit Gaussian to one of standard deviation `spread`."""
    variance = (1.0 - t) ** 2 + (t * spread) ** 2
    return (t * spread**2 - (1.0 - t)) / variance * x


def gaussian_error(solver: str, steps: int) -> float:
    noise = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4)
    times = timesteps(steps, 40, 40)
    result = sample(lambda x, t, step: gaussian_flow_velocity(x, t), noise, times, solver=solver)
    return (result - 0.3 * noise).abs().max().item()


def test_euler_moves_along_the_velocity():
    x, velocity = torch.tensor([1.0]), torch.tensor([2.0])
    assert EulerSolver().step(x, velocity, 0.25, 0.5).item() == 1.5


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_a_straight_flow_is_followed_exactly(solver):
    image, noise = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    result = sample(lambda x, t, step: image - noise, noise, timesteps(7, 64, 64), solver=solver)
    assert torch.allclose(result, image, atol=1e-5)


def test_dpm_solver_is_closer_than_euler_at_the_same_cost():
    assert gaussian_error("dpmpp_2m", 16) < 0.5 * gaussian_error("euler", 16)


def test_dpm_solver_stays_finite_at_both_infinite_ends():
    solver = DPMSolverPP2M()
    x = torch.ones(1)
    for t, t_next in [(0.0, 0.2), (0.2, 0.9), (0.9, 1.0)]:
        x = solver.step(x, torch.ones(1), t, t_next)
        assert torch.isfinite(x).all()


def test_dpm_solver_ends_on_its_estimate_of_the_image():
    solver = DPMSolverPP2M()
    x, velocity = torch.tensor([0.5]), torch.tensor([2.0])
    assert solver.step(x, velocity, 0.75, 1.0).item() == pytest.approx(0.5 + 0.25 * 2.0)


def test_dpm_second_step_uses_the_first_only_when_its_signal_to_noise_is_finite():
    def second_step(first_time: float) -> float:
        solver = DPMSolverPP2M()
        solver.step(torch.tensor([0.0]), torch.tensor([3.0]), first_time, 0.3)
        return solver.step(torch.tensor([1.0]), torch.tensor([1.0]), 0.3, 0.5).item()

    fresh = DPMSolverPP2M().step(torch.tensor([1.0]), torch.tensor([1.0]), 0.3, 0.5).item()
    assert second_step(0.0) == fresh
    assert second_step(0.1) != fresh


def test_dpm_second_order_step_by_hand():
    def log_snr(t):
        return math.log(t / (1 - t))

    solver = DPMSolverPP2M()
    solver.step(torch.tensor([0.0]), torch.tensor([3.0]), 0.1, 0.3)
    result = solver.step(torch.tensor([1.0]), torch.tensor([1.0]), 0.3, 0.5).item()
    estimate, previous = 1.0 + 0.7, 0.9 * 3.0
    h = log_snr(0.5) - log_snr(0.3)
    slope = (estimate - previous) / ((log_snr(0.3) - log_snr(0.1)) / h)
    expected = 0.5 / 0.7 - 0.5 * (math.exp(-h) - 1) * (estimate + slope / 2)
    assert result == pytest.approx(expected, rel=1e-6)


def test_a_step_of_no_length_changes_nothing():
    solver = DPMSolverPP2M()
    solver.step(torch.tensor([0.0]), torch.tensor([3.0]), 0.1, 0.3)
    assert solver.step(torch.tensor([1.0]), torch.tensor([1.0]), 0.3, 0.3).item() == 1.0
    assert math.isfinite(solver.step(torch.tensor([1.0]), torch.tensor([1.0]), 0.3, 0.5).item())


def test_an_unknown_solver_is_refused_with_the_known_ones():
    with pytest.raises(SamplingError, match="'ddim'; choose one of euler, dpmpp_2m"):
        make_solver("ddim")
