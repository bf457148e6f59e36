"""The times of a run."""

import pytest
import torch

from omnigen2_core.errors import SamplingError
from omnigen2_core.schedule import custom_timesteps, sigmas, step_at, time_shift_factor, timesteps


@pytest.mark.parametrize("side, factor", [(1024, 3.2), (512, 1.6), (320, 1.0)])
def test_the_shift_grows_with_the_picture(side, factor):
    assert time_shift_factor(side // 8, side // 8) == pytest.approx(factor)


def test_the_shift_base_comes_from_the_checkpoint():
    assert time_shift_factor(8, 8, base=8.0) == 1.0


def test_times_rise_from_noise_to_image():
    times = timesteps(50, 128, 128)
    assert times.dtype == torch.float32 and times.shape == (51,)
    assert times[0] == 0.0 and times[-1] == 1.0
    assert (times[1:] > times[:-1]).all()


def test_without_shift_times_are_even():
    assert timesteps(4, 128, 128, shift=None).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_fixed_shift_is_the_factor_itself():
    assert torch.equal(timesteps(10, 1, 1, shift=3.2), timesteps(10, 128, 128))
    assert not torch.equal(timesteps(10, 1, 1, shift=2.6), timesteps(10, 128, 128))


def test_the_shift_equals_the_usual_flow_shift_in_sigma():
    even, shifted = sigmas(timesteps(20, 1, 1, shift=None)), sigmas(timesteps(20, 1, 1, shift=2.6))
    assert torch.allclose(shifted, 2.6 * even / (1 + 1.6 * even), atol=1e-6)


def test_partial_denoise_walks_the_end_of_a_longer_schedule():
    part = timesteps(5, 64, 64, denoise=0.5)
    assert torch.equal(part, timesteps(10, 64, 64)[5:])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"denoise": 0.0}, {"denoise": 1.2}, {"shift": -1.0}, {"shift": "on"}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(SamplingError, match="got 0|denoise is|shift is"):
        timesteps(**{"steps": 4, "latent_h": 64, "latent_w": 64, **wrong})


def test_custom_times_get_the_image_as_their_end():
    assert custom_timesteps([0.0, 0.5]).tolist() == [0.0, 0.5, 1.0]


def test_a_model_call_finds_its_step_by_its_noise_level():
    run = sigmas(timesteps(10, 128, 128))
    assert [step_at(float(level), run) for level in run[:-1]] == list(range(10))


def test_a_call_between_two_levels_belongs_to_the_step_it_is_inside_of():
    run = [1.0, 0.8, 0.5, 0.0]
    assert step_at(0.9, run) == 0
    assert step_at(0.6, run) == 1
    assert step_at(0.2, run) == 2
    assert step_at(0.0, run) == 2
    assert step_at(1.0001, run) == 0
