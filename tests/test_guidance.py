"""Which predictions a step needs, and how they become one velocity."""

import pytest
import torch

from omnigen2_core.guidance import Guidance, branches, combine, guided_denoiser


def guided_steps(guidance: Guidance, steps: int, has_references: bool = True) -> list[int]:
    return [i for i in range(steps) if len(branches(guidance, i, steps, has_references)) > 1]


def test_text_and_image_guidance_need_three_predictions():
    assert branches(Guidance(5.0, 2.0), 0, 10, has_references=True) == ("cond", "ref", "uncond")


def test_text_to_image_never_needs_a_third():
    assert branches(Guidance(5.0, 2.0), 0, 10, has_references=False) == ("cond", "uncond")


def test_with_image_guidance_off_the_negative_prompt_sees_no_references():
    assert branches(Guidance(5.0, 1.0), 0, 10, has_references=True) == ("cond", "uncond")


@pytest.mark.parametrize("text", [1.0, 0.5])
def test_text_guidance_off_switches_image_guidance_off_too(text):
    assert branches(Guidance(text, 3.0), 0, 10, has_references=True) == ("cond",)


@pytest.mark.parametrize(
    "window, expected",
    [((0.0, 1.0), list(range(10))), ((0.0, 0.6), list(range(7))), ((0.2, 0.8), list(range(2, 9))), ((1.0, 1.0), [])],
)
def test_the_range_counts_steps_and_includes_both_ends(window, expected):
    assert guided_steps(Guidance(5.0, 2.0, window), 10) == expected


@pytest.mark.parametrize("window", [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.5)])
def test_a_range_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match="guidance range is .*; let it start and end within 0..1, and not start after its end"):
        Guidance(range=window)


def test_the_formulas():
    c, r, u = torch.tensor([7.0]), torch.tensor([3.0]), torch.tensor([1.0])
    guidance = Guidance(text=4.0, image=2.0)
    assert combine({"cond": c}, guidance).item() == 7.0
    assert combine({"cond": c, "uncond": u}, guidance).item() == 1 + 4 * (7 - 1)
    assert combine({"cond": c, "ref": r, "uncond": u}, guidance).item() == 1 + 2 * (3 - 1) + 4 * (7 - 3)


def test_predictions_outside_the_range_are_not_run():
    called = []

    def predict(branch, x, t, step):
        called.append((step, branch))
        return x

    denoise = guided_denoiser(predict, Guidance(5.0, 2.0, (0.5, 1.0)), steps=2, has_references=True)
    for step in range(2):
        denoise(torch.zeros(1, 1, 2, 2), step / 2, step)
    assert called == [(0, "cond"), (1, "cond"), (1, "ref"), (1, "uncond")]
