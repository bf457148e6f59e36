"""Pictures reach the vision tower as the reference's processor sends them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from omnigen2_core.errors import SizeError
from omnigen2_core.vision import PixelConfig, preprocess, smart_resize, token_counts

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "mllm.json").read_text())
CASES = load_file(GOLDEN / "mllm_cases.safetensors")


def limits(row):
    return PixelConfig(min_pixels=row["min_pixels"], max_pixels=row["max_pixels"])


@pytest.mark.parametrize("row", FACTS["preprocess"], ids=lambda row: row["name"])
def test_pixel_values_match_the_reference(row):
    image = Image.fromarray(CASES[f"preprocess/{row['name']}.image"].numpy())
    values, grid = preprocess([image], limits(row))
    assert torch.equal(grid, CASES[f"preprocess/{row['name']}.image_grid_thw"])
    assert (values - CASES[f"preprocess/{row['name']}.pixel_values"]).abs().max() <= 1e-5


def test_sizes_match_the_reference_table():
    accepted = [row for row in FACTS["smart_resize_table"] if "error" not in row]
    assert len(accepted) > 10
    for row in accepted:
        width, height = smart_resize(row["width"], row["height"], limits(row))
        assert [width, height] == row["resized_width_height"]
        assert [height // 14, width // 14] == row["grid_hw"]
        assert token_counts(torch.tensor([[1, height // 14, width // 14]]), 2) == [row["llm_image_tokens"]]


def test_images_that_the_reference_refuses_as_too_small_are_scaled_up_first():
    refused = [row for row in FACTS["smart_resize_table"] if "error" in row]
    assert {(row["width"], row["height"]) for row in refused} == {(10, 10), (14, 140)}
    assert smart_resize(10, 10) == smart_resize(28, 28) == (56, 56)
    assert smart_resize(14, 140) == smart_resize(28, 280) == (28, 280)


@pytest.mark.parametrize("width, height", [(1, 201), (5000, 20), (0, 10)])
def test_images_that_are_too_thin_are_refused(width, height):
    with pytest.raises(SizeError, match=f"{width}x{height}"):
        smart_resize(width, height)


def test_several_images_follow_each_other():
    first, second = Image.new("RGB", (56, 84), "red"), Image.new("L", (112, 56), 128)
    together, grid = preprocess([first, second])
    apart = torch.cat([preprocess([first])[0], preprocess([second])[0]])
    assert torch.equal(together, apart)
    assert grid.tolist() == [[1, 6, 4], [1, 4, 8]]


def test_patch_sizes_and_limits_come_from_the_processor_config():
    common = {"patch_size": 8, "temporal_patch_size": 1, "merge_size": 1}
    common |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    newer = common | {"size": {"shortest_edge": 64, "longest_edge": 4096}}
    config = PixelConfig.from_dict(common | {"min_pixels": 64, "max_pixels": 4096})
    assert config == PixelConfig.from_dict(newer) == PixelConfig(8, 1, 1, 64, 4096, (0.5,) * 3, (0.5,) * 3)
    values, grid = preprocess([Image.new("RGB", (64, 32), "white")], config)
    assert grid.tolist() == [[1, 4, 8]]
    assert values.shape == (32, 192) and torch.all(values == 1)
    assert PixelConfig.from_dict({}) == PixelConfig()
