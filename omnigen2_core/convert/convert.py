"""Converting a folder, a part of one, or a single file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import ModelFolder, is_model_folder
from ..errors import CheckpointError
from .encode import encode
from .files import write_gguf, write_safetensors
from .mix import FORMATS, SAFETENSORS_FORMATS, Choice, choose
from .source import KINDS, Source, source_of_file, source_of_folder

Progress = Callable[[str, int, int], None]
"""Called with the name of what is written, the bytes written of it so far, and all its bytes."""

_TITLES = {"transformer": "OmniGen2, diffusion model", "mllm": "OmniGen2, encoder (Qwen2.5-VL 3B)"}
_FILES = {"transformer": "diffusion_pytorch_model", "mllm": "model"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """What became of a part: the file, how each tensor is stored with the bytes it takes, and the part's size before."""

    part: str
    path: Path
    tensors: tuple[tuple[Choice, int], ...]
    size_before: int


def ending(format: str) -> str:
    """How files in `format` end."""
    return ".safetensors" if format in SAFETENSORS_FORMATS else ".gguf"


def convert_part(source: Source, path: Path, format: str, progress: Progress | None = None) -> Converted:
    """Write `source` to the file `path` in `format`, one of `FORMATS`; one tensor at a time, in pieces."""
    choices = {name: choose(name, info, format) for name, info in source.tensors.items()}
    stored, sizes = [], {}
    for name, choice in choices.items():
        entries = encode(source, name, choice)
        stored += entries
        sizes[name] = sum(entry.size for entry in entries)
    total, done = sum(sizes.values()), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(source.name, done, total)

    if format in SAFETENSORS_FORMATS:
        write_safetensors(path, stored, source.metadata, count)
    else:
        shapes = {name: info.shape for name, info in source.tensors.items()}
        about = {"general.architecture": "omnigen2", "general.name": _TITLES[source.part], **source.metadata}
        write_gguf(path, stored, shapes, about, format.upper(), count)
    return Converted(source.part, path, tuple((choice, sizes[name]) for name, choice in choices.items()), source.size)


def convert(
    source: Path, out: Path, format: str, *, part: str | None = None, force: bool = False, progress: Progress | None = None
) -> list[Converted]:
    """Convert the folder or file `source` to `out`.

    A folder becomes a folder with both parts converted and everything else copied; with `part`, and for a file, `out`
    is a file. Raises `CheckpointError` in one sentence for a source that cannot be converted and for an `out` that does
    not fit or is there already (`force` replaces it).
    """
    if format not in FORMATS:
        raise CheckpointError(f"there is no format {format}; choose one of {', '.join(FORMATS)}")
    if not source.exists():
        raise CheckpointError(f"there is no {source}; give the authors' folder or a .safetensors file")
    if source.is_dir() and part is None:
        return _convert_folder(ModelFolder(source), out, format, force, progress)
    found = source_of_folder(ModelFolder(source), part) if source.is_dir() else source_of_file(source)
    if part not in (None, found.part):
        raise CheckpointError(f"{source.name} is the {KINDS[found.part].value}, not the part {part}; leave --part out")
    if out.suffix != ending(format):
        raise CheckpointError(f"{out.name} will be a file in {format}, so its name must end with {ending(format)}")
    _check_free(out, source, force)
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder, and one part goes to a file; give a file's name")
    out.parent.mkdir(parents=True, exist_ok=True)
    return [convert_part(found, out, format, progress)]


def _convert_folder(folder: ModelFolder, out: Path, format: str, force: bool, progress: Progress | None) -> list[Converted]:
    sources = [source_of_folder(folder, part) for part in KINDS]
    _check_free(out, folder.path, force)
    if out.exists() and not (out.is_dir() and is_model_folder(out)):
        raise CheckpointError(f"{out} is no model folder, so it is not replaced; give another name")
    partial = out.with_name(out.name + ".partial")
    # What an earlier run that was killed left there could be in another format.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _copy_rest(folder, partial)
        done = []
        for source in sources:
            path = partial / source.part / (_FILES[source.part] + ending(format))
            done.append(convert_part(source, path, format, progress))
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [Converted(c.part, out / c.part / c.path.name, c.tensors, c.size_before) for c in done]


def _copy_rest(folder: ModelFolder, target: Path) -> None:
    """Everything of a folder but the weights that are converted and their indexes."""
    left_out = {path for part in KINDS for path in folder.weight_files(part)}
    left_out |= {path for part in KINDS for path in (folder.path / part).glob("*.index.json")}

    def ignore(place: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(place) / name in left_out]

    shutil.copytree(folder.path, target, ignore=ignore, dirs_exist_ok=True)


def _check_free(out: Path, source: Path, force: bool) -> None:
    within = out.resolve()
    if within == source.resolve() or source.resolve() in within.parents:
        raise CheckpointError(f"{out} is the source or lies in it; give a place outside it")
    if out.exists() and not force:
        raise CheckpointError(f"{out} is there already; give another name, or --force to replace it")
