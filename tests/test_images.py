"""Size rules, and pictures of every kind on their way to tensors and back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from omnigen2_core.errors import SizeError
from omnigen2_core.images import (
    from_pixels,
    output_size,
    reference_pixels,
    reference_size,
    to_image_tensor,
    to_pil,
    to_pixels,
    to_rgb,
)


def test_references_are_never_enlarged():
    assert reference_size(96, 64, max_pixels=10**9, max_side=4096) == (96, 64)


def test_references_are_cut_down_to_multiples_of_sixteen():
    assert reference_size(111, 79) == (96, 64)


def test_the_side_limit_and_the_pixel_limit_both_hold():
    assert reference_size(4096, 2048, max_side=1024) == (1024, 512)
    assert reference_size(2048, 2048, max_pixels=512 * 512, max_side=2048) == (512, 512)


def test_a_thin_image_gets_sixteen_pixels_and_not_none():
    assert reference_size(65, 4096, max_pixels=262144, max_side=512) == (16, 512)


def test_the_multiple_comes_from_the_model():
    assert reference_size(111, 79, multiple=8) == (104, 72)


@pytest.mark.parametrize(
    "size, expected", [((100, 1000), (96, 992)), ((8, 8), (16, 16)), ((8000, 8000), (1024, 1024)), ((1, 200), (16, 192))]
)
def test_extreme_references_have_a_size(size, expected):
    assert reference_size(*size) == expected


@pytest.mark.parametrize("size, expected", [((1, 201), (16, 192)), ((8000, 20), (1024, 16)), ((3, 90000), (16, 1024))])
def test_a_strip_gets_one_patch_and_not_none(size, expected):
    assert reference_size(*size) == expected


def test_without_a_side_limit_the_pixel_limit_holds_alone():
    assert reference_size(4096, 1024, max_side=None) == (2048, 512)
    assert reference_size(4096, 128, max_side=None) == (4096, 128)


@pytest.mark.parametrize("call", [lambda: reference_size(0, 5), lambda: output_size(5, 0)])
def test_an_empty_image_is_refused(call):
    with pytest.raises(SizeError, match="empty"):
        call()


def test_limits_below_one_patch_are_refused():
    with pytest.raises(SizeError, match="max_side is 8"):
        reference_size(64, 64, max_side=8)
    with pytest.raises(SizeError, match="max_pixels is 100"):
        output_size(64, 64, max_pixels=100)


def test_output_is_generated_within_the_pixel_limit():
    assert output_size(1000, 1000) == (992, 992)
    assert output_size(2048, 2048) == (1024, 1024)
    assert output_size(8, 8) == (16, 16)


def test_pixels_run_from_minus_one_to_one():
    pixels = to_pixels(Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8)))
    assert pixels.shape == (1, 3, 1, 1) and pixels.dtype == torch.float32
    assert torch.allclose(pixels.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_transparency_lies_over_white():
    image = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert to_rgb(image).getpixel((0, 0)) == (127, 127, 127)


def test_a_palette_with_a_transparent_colour_lies_over_white_too():
    image = Image.new("P", (1, 1), 0)
    image.putpalette([255, 0, 0])
    image.info["transparency"] = 0
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_one_channel_becomes_grey():
    assert to_rgb(Image.new("L", (2, 2), 77)).getpixel((1, 1)) == (77, 77, 77)
    assert to_rgb(Image.new("1", (2, 2), 1)).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("value, expected", [(0, 0), (65535, 255), (32896, 128), (257 * 40, 40)])
def test_sixteen_bits_are_scaled_and_not_clipped(value, expected):
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, dtype=np.uint16)).save(buffer, "PNG")
    assert to_rgb(Image.open(buffer)).getpixel((0, 0)) == (expected,) * 3


def test_floating_point_pictures_are_refused():
    with pytest.raises(SizeError, match="floating point"):
        to_pixels(Image.new("F", (4, 4)))


def test_a_rotated_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32)).save(buffer, "JPEG", exif=exif)
    assert reference_pixels(Image.open(buffer)).shape == (1, 3, 48, 32)


def test_a_huge_picture_is_brought_down():
    assert reference_pixels(Image.new("L", (8000, 8000))).shape == (1, 3, 1024, 1024)


def test_decoded_pixels_are_stretched_to_the_requested_size():
    pictures = from_pixels(torch.zeros(2, 3, 32, 48), size=(50, 40))
    assert [picture.size for picture in pictures] == [(50, 40), (50, 40)]
    assert pictures[0].getpixel((10, 10)) == (128, 128, 128)


def test_picture_to_tensor_and_back_changes_nothing():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(to_pil(to_image_tensor(picture)[0])), np.asarray(picture))
    assert np.array_equal(np.asarray(from_pixels(to_pixels(picture))[0]), np.asarray(picture))


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_image_tensors_of_one_three_and_four_channels(channels, mode):
    assert to_pil(torch.rand(4, 6, channels)).mode == mode


def test_values_out_of_range_or_not_numbers_are_made_safe():
    image = torch.tensor([[[float("nan")], [float("inf")], [-3.0], [2.0]]])
    assert np.asarray(to_pil(image)).tolist() == [[0, 255, 0, 255]]


def test_an_image_tensor_of_another_shape_is_refused():
    with pytest.raises(SizeError, match=r"got \[3, 4, 5\]"):
        to_pil(torch.zeros(3, 4, 5))
