"""The denoising loop."""

import pytest
import torch

from omnigen2_core.errors import SamplingError
from omnigen2_core.sampler import sample
from omnigen2_core.schedule import timesteps


def test_the_denoiser_sees_every_time_and_step_once():
    calls = []

    def denoise(x, t, step):
        calls.append((step, t))
        return torch.zeros_like(x)

    times = timesteps(4, 64, 64)
    sample(denoise, torch.zeros(1, 4, 2, 2), times)
    assert calls == list(enumerate(times[:-1].tolist()))


def test_latents_stay_fp32_whatever_the_model_answers():
    seen = []

    def denoise(x, t, step):
        seen.append(x.dtype)
        return x.bfloat16()

    result = sample(denoise, torch.ones(1, 4, 2, 2, dtype=torch.bfloat16), timesteps(3, 64, 64))
    assert result.dtype == torch.float32 and set(seen) == {torch.float32}


def test_the_callback_gets_the_estimate_of_the_image_and_the_new_latents():
    image, noise = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), -1.0)
    reports = []
    times = timesteps(4, 8, 8, shift=None)
    result = sample(lambda x, t, step: image - noise, noise, times, callback=lambda *report: reports.append(report))
    assert [step for step, _, _ in reports] == [0, 1, 2, 3]
    assert all(torch.allclose(estimate, image) for _, estimate, _ in reports)
    assert [latents.mean().item() for _, _, latents in reports] == [0.0, 1.0, 2.0, 3.0]
    assert torch.equal(reports[-1][2], result)


def test_an_exception_in_the_callback_ends_the_run():
    steps_run = []

    def denoise(x, t, step):
        steps_run.append(step)
        return x

    def interrupt(step, estimate, latents):
        if step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(denoise, torch.zeros(1, 1, 2, 2), timesteps(10, 8, 8), callback=interrupt)
    assert steps_run == [0, 1]


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_two_runs_share_nothing(solver):
    def run():
        return sample(lambda x, t, step: torch.sin(x) + t, torch.ones(1, 1, 2, 2), timesteps(6, 64, 64), solver=solver)

    assert torch.equal(run(), run())


def test_a_run_may_stop_early_and_be_continued():
    times = timesteps(8, 64, 64)

    def denoise(x, t, step):
        return torch.sin(x) + t

    start = torch.ones(1, 1, 2, 2)
    half = sample(denoise, start, times[:5])
    assert torch.equal(sample(denoise, half, times[4:]), sample(denoise, start, times))


@pytest.mark.parametrize("times", [[0.5], [0.5, 0.2], [0.0, 1.5], [-0.1, 1.0], [float("nan"), 1.0]])
def test_times_that_do_not_rise_are_refused(times):
    with pytest.raises(SamplingError, match="rise within 0..1"):
        sample(lambda x, t, step: x, torch.zeros(1, 1, 2, 2), torch.tensor(times))
