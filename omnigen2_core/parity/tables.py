"""Parts that need no weights: schedules, size rules, and the preparation of references."""

from __future__ import annotations

from typing import Iterator

import torch
from PIL import Image

from ..images import output_size, reference_pixels, reference_size
from ..schedule import sigmas, time_shift_factor, timesteps
from .folder import GoldenFolder
from .report import Row, Ruler

SCHEDULE_TOLERANCE = 1e-6
PIXEL_TOLERANCE = 1e-6
SMALLEST_SIDE = 16


def replay_schedules(folder: GoldenFolder) -> Iterator[Row]:
    """Every table of times, and its sigmas where it has them."""
    ruler = Ruler("schedule")
    for entry in folder.json("schedule")["tables"]:
        shifted = entry["dynamic_time_shift"]
        height, width = entry["latent_h"], entry["latent_w"]
        times = timesteps(entry["steps"], height, width, shift="auto" if shifted else None)
        pairs = [(times[:-1], torch.tensor(entry["timesteps"]))]
        if "timesteps_with_end" in entry:
            pairs.append((times, torch.tensor(entry["timesteps_with_end"])))
        if "sigmas" in entry:
            pairs.append((sigmas(times), torch.tensor(entry["sigmas"])))
        if "m" in entry:
            pairs.append((torch.tensor(time_shift_factor(height, width)), torch.tensor(entry["m"])))
        name = f"{entry['scheduler']} {entry['steps']} {entry['width']}x{entry['height']}"
        yield ruler.close(name + ("" if shifted else " unshifted"), pairs, SCHEDULE_TOLERANCE)


def replay_sizes(folder: GoldenFolder) -> Iterator[Row]:
    """The size rules, each over all its rows."""
    ruler, golden = Ruler("sizes"), folder.json("image_sizing")

    def at_least_one_patch(size: list[int]) -> tuple[int, int]:
        # 0 marks an image that the reference cannot take.
        width, height = (side or SMALLEST_SIDE for side in size)
        return width, height

    def reference(row: dict, prefix: str = "") -> tuple[int, int]:
        limits = {"max_pixels": row["max_pixels"], "max_side": row["max_side_length"]}
        return reference_size(row[f"{prefix}width"], row[f"{prefix}height"], **limits)

    rules = {
        "input_image_rule": (reference, "new_width_height"),
        "output_size_rule": (
            lambda row: output_size(row["width"], row["height"], max_pixels=row["max_pixels"]),
            "generated_width_height",
        ),
        "align_res_single_reference": (lambda row: reference(row, "ref_"), "output_width_height"),
    }
    for name, (rule, key) in rules.items():
        rows = golden.get(name, [])
        if rows:
            pairs = [(rule(row), at_least_one_patch(row[key])) for row in rows]
            yield ruler.exact(f"{name}, {len(rows)} sizes", pairs)


def replay_pixels(folder: GoldenFolder) -> Iterator[Row]:
    """References as the autoencoder gets them."""
    ruler, tensors = Ruler("pixels"), folder.tensors("image_preprocess")
    for row in folder.json("image_sizing").get("pixel_cases", ()):
        index = row["index"]
        image = Image.fromarray(tensors[f"image.{index}"].numpy())
        got = reference_pixels(image, max_pixels=row["max_pixels"], max_side=row["max_side_length"])
        yield ruler.close(f"image {index}", [(got, tensors[f"pixels.{index}"])], PIXEL_TOLERANCE)
