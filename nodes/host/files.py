"""Finding model files through ComfyUI's folder settings, `extra_model_paths.yaml` included.

Nothing here runs at import: lists are read inside `define_schema`, so that a file added while the server runs
appears after the browser refreshes. Names travel in saved workflows, so they are compared with `/` and `\\` alike.
"""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...omnigen2_core.errors import CheckpointError

WEIGHTS = Path(__file__).resolve().parents[2] / "omnigen2_core" / "nano" / "weights"
BUILT_IN_NAME = "OmniGen2-nano (built in)"
BUILT_IN_PATH = WEIGHTS / "OmniGen2-nano"
# Files of the pack that are listed behind those of a category.
BUILT_IN_FILES = {
    "loras": {
        "OmniGen2-nano framed (built in)": WEIGHTS / "loras" / "OmniGen2-nano-framed.safetensors",
        "OmniGen2-nano mending (built in)": WEIGHTS / "loras" / "OmniGen2-nano-mending.safetensors",
    }
}
# Where GGUF files are, too: what packs for such files call the place, if one has registered it.
GGUF_CATEGORIES = {"diffusion_models": "unet_gguf", "text_encoders": "clip_gguf"}
# The authors' folder may sit in a publisher's folder; deeper trees are somebody's archive, not models.
FOLDER_DEPTH = 3


def normalise(name: str) -> str:
    """A file name as it is compared: workflows saved on Windows carry backslashes."""
    return name.replace("\\", "/")


def list_files(category: str) -> list[str]:
    """Names of the files in a ComfyUI model category such as "vae", with the separators of this system, then of GGUF
    files, and the built-in ones last.
    """
    return [*_category_files(category), *BUILT_IN_FILES.get(category, {})]


def find_file(category: str, name: str | None) -> str | None:
    """The full path of a listed file, or None. A name that is not in the category's list is never opened.

    name: None while another node has yet to give it.
    """
    if name is None:
        return None
    built_in = BUILT_IN_FILES.get(category, {}).get(name)
    if built_in:
        return str(built_in)
    wanted = normalise(name)
    for listed, path in _category_files(category).items():
        if normalise(listed) == wanted:
            return path or folder_paths.get_full_path(category, listed)
    return None


def resolve_file(category: str, name: str) -> str:
    """Like `find_file`, but raises CheckpointError for a file that is not there."""
    path = find_file(category, name)
    if path is None:
        raise CheckpointError(missing_file(category, name))
    return path


def check_file(category: str, name: str | None) -> bool | str:
    """What a node's `validate_inputs` answers: True, or the sentence for a file that is not there.

    A name that comes from another node (None so far) is looked for when the node runs.
    """
    return name is None or find_file(category, name) is not None or missing_file(category, name)


def missing_file(category: str, name: str) -> str:
    """The sentence for a file that is not in its folder."""
    return (
        f"The file {name!r} is not in models/{category}; put it there, or choose another one after refreshing the page."
    )


def _category_files(category: str) -> dict[str, str | None]:
    """The files of a category, and the full paths of GGUF files, which ComfyUI itself does not list."""
    found: dict[str, str | None] = dict.fromkeys(folder_paths.get_filename_list(category))
    if category not in GGUF_CATEGORIES:
        return found
    roots = list(folder_paths.get_folder_paths(category))
    if GGUF_CATEGORIES[category] in folder_paths.folder_names_and_paths:
        roots += folder_paths.get_folder_paths(GGUF_CATEGORIES[category])
    for root in roots:
        names, _ = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
        for name in folder_paths.filter_files_extensions(names, {".gguf"}):
            found.setdefault(name, os.path.join(root, name))
    return found


def model_folders() -> dict[str, Path]:
    """Folders in the authors' layout below models/diffusers, by name with `/`, and the built-in model last."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for path in _folders_below(Path(root), FOLDER_DEPTH):
            found.setdefault(path.relative_to(root).as_posix(), path)
    folders = dict(sorted(found.items(), key=lambda item: item[0].lower()))
    folders[BUILT_IN_NAME] = BUILT_IN_PATH
    return folders


def resolve_folder(name: str) -> Path:
    """The path of a folder that `model_folders` lists. Raises CheckpointError for any other name."""
    folders = model_folders()
    path = folders.get(normalise(name))
    if path is None:
        raise CheckpointError(missing_folder(name))
    return path


def check_folder(name: str | None) -> bool | str:
    """`check_file` for a model folder."""
    return name is None or normalise(name) in model_folders() or missing_folder(name)


def missing_folder(name: str) -> str:
    """The sentence for a model folder that is not there."""
    return (
        f"There is no model folder {name!r} in models/diffusers; put the authors' folder there (with transformer, "
        f"vae, mllm and processor inside), or choose {BUILT_IN_NAME!r}."
    )


def fingerprint(*paths: str | os.PathLike | None) -> str:
    """Changes when a file, or any file of a folder, is replaced: sizes and modification times, no contents."""
    stamps = []
    for path in paths:
        if path is None:
            continue
        path = Path(path)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            stat = file.stat()
            stamps.append(f"{file}:{stat.st_size}:{stat.st_mtime_ns}")
    return "|".join(stamps)


def _folders_below(root: Path, depth: int) -> list[Path]:
    if depth == 0:
        return []
    found = []
    try:
        children = [child for child in root.iterdir() if os.path.isdir(child)]
    except OSError:  # not there, or not to be read by this user: nothing that could be listed
        return []
    for child in children:
        if os.path.isdir(child / "transformer"):
            found.append(child)
        else:
            found.extend(_folders_below(child, depth - 1))
    return found
