"""The encoder's pictures: the size rule and the pixel values."""

from __future__ import annotations

from typing import Iterator

from PIL import Image

from ..vision import PixelConfig, preprocess, smart_resize
from .folder import GoldenFolder, named
from .report import Row, Ruler

TOLERANCE = 1e-5


def replay_vision(folder: GoldenFolder) -> Iterator[Row]:
    """The preparation of pictures for the encoder, always in fp32."""
    ruler, golden = Ruler("vision"), folder.json("mllm")
    # Rows with an error are images that the reference refuses and this package may scale up.
    table = [row for row in golden.get("smart_resize_table", ()) if "error" not in row]
    yield ruler.exact(
        f"smart_resize, {len(table)} sizes",
        [(smart_resize(row["width"], row["height"], _config(row)), tuple(row["resized_width_height"])) for row in table],
    )
    tensors = folder.tensors("mllm_cases")
    for row in golden.get("preprocess", ()):
        values = named(tensors, f"preprocess/{row['name']}", ".")
        pixels, grid = preprocess([Image.fromarray(values["image"].numpy())], _config(row))
        # A grid belongs to one picture, whether it is stored as a row or alone.
        yield ruler.exact(f"{row['name']} grid", [(grid.flatten().tolist(), values["image_grid_thw"].flatten().tolist())])
        yield ruler.close(f"{row['name']} pixel_values", [(pixels, values["pixel_values"])], TOLERANCE)


def _config(row: dict) -> PixelConfig:
    return PixelConfig(min_pixels=row["min_pixels"], max_pixels=row["max_pixels"])
