"""The pictures of a chat: files below ComfyUI's output folder, which a conversation names."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ...omnigen2_core.images import content_mark, to_pil

FOLDER = "omnigen2_chat"
"""Below the output folder."""


class ChatPictures:
    """Pictures of one turn by their names, in files or still to be written. Made for one run.

    What the user shows is written by `keep`, once it is part of the conversation: a turn that fails or is cancelled
    leaves no files.
    """

    def __init__(self) -> None:
        self._shown: dict[str, Image.Image] = {}

    def show(self, picture: Image.Image) -> str:
        """The name of an RGB picture of the user. It follows from the pixels, so that no picture is kept twice."""
        name = f"{FOLDER}/shown_{content_mark(picture)[:24]}.png"
        self._shown[name] = picture
        return name

    def open(self, name: str) -> Image.Image:
        """The picture of that name. Raises OSError when there is none, or none that can be read."""
        if name in self._shown:
            return self._shown[name]
        try:
            with Image.open(_path(name)) as picture:
                picture.load()
                return picture
        except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise OSError(f"the file is no picture that can be read ({error})") from error

    def keep(self) -> None:
        """Write the user's pictures, except those that are there. Raises OSError when there is no room."""
        for name, picture in self._shown.items():
            path = _path(name)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                # Half a file under a name that stands for its content would be taken for the whole.
                unfinished = path.with_suffix(".part")
                picture.save(unfinished, format="PNG")
                os.replace(unfinished, path)


def save_drawn(images: torch.Tensor, node: type[io.ComfyNode]) -> list[str]:
    """Write images [B, H, W, 3] in 0..1 as Save Image does, with the workflow of `node`; returns their names.

    The content is in the name: in the output folder of another machine, or in one that was emptied, a name would else
    soon stand for another picture.
    """
    names = []
    for image in images:
        prefix = f"{FOLDER}/drawn_{content_mark(to_pil(image))[:12]}"
        [file] = ui.ImageSaveHelper.save_images(image[None], prefix, io.FolderType.output, node)
        names.append("/".join([*Path(file["subfolder"]).parts, file["filename"]]))
    return names


def _path(name: str) -> Path:
    """Raises FileNotFoundError for what is outside the output folder, as a link in it may be."""
    folder = folder_paths.get_output_directory()
    path = os.path.join(folder, *name.split("/"))
    if not folder_paths.is_within_directory(folder, path):
        raise FileNotFoundError(f"{name} is not in the output folder")
    return Path(path)
