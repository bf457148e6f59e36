"""The authors' folder: transformer/, vae/, mllm/, processor/, scheduler/, as published, and the same in any size."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..profile import ModelProfile
from .header import Header, read_header
from .identify import FileInfo, FileKind, classify
from .refusals import refuse_unless
from .scaled import as_stored, dequantise
from .tensors import read_tensors

PARTS = {"transformer": FileKind.DIT, "vae": FileKind.VAE, "mllm": FileKind.ENCODER}
"""Parts with weights."""

_CONFIG_FILES = {"scheduler": "scheduler_config.json", "processor": "preprocessor_config.json"}
_INDEX = ".safetensors.index.json"
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_WHERE = "download the whole OmniGen2 folder into models/diffusers/"


def is_model_folder(path: str | Path) -> bool:
    """Whether `path` looks like a model folder: it holds transformer/config.json."""
    return (Path(path) / "transformer" / "config.json").is_file()


def find_model_folders(root: str | Path) -> list[str]:
    """Names of the model folders directly below `root` (such as models/diffusers/), sorted; empty without `root`."""
    root = Path(root)
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and is_model_folder(entry))


class ModelFolder:
    """A model folder on disk. Nothing is read until it is asked for; what is missing is said then, in one sentence.

    Attributes: `path`, and `name` (the folder's name), which messages use.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = self.path.name
        if self.path.is_file():
            raise CheckpointError(
                f"{self.name} is a file, a folder with transformer/, vae/, mllm/ and processor/ was expected; load "
                "single files with OmniGen2 Load Diffusion Model"
            )
        if not self.path.is_dir():
            raise CheckpointError(f"there is no folder {self.path}; {_WHERE}")
        if not any((self.path / part).is_dir() for part in PARTS):
            raise CheckpointError(
                f"{self.name} is no OmniGen2 folder: it has none of transformer/, vae/, mllm/; {_WHERE}"
            )

    def check(self, parts: Iterable[str] = (*PARTS, "processor")) -> None:
        """Raise `CheckpointError` naming every one of `parts` that this folder lacks; by default of all that the authors' has."""
        missing = [f"{part}/" for part in parts if not (self.path / part).is_dir()]
        if missing:
            raise CheckpointError(f"{self.name} lacks {', '.join(missing)}; {_WHERE}")

    def config(self, part: str) -> dict:
        """The parsed JSON of a part's config: `transformer`, `vae`, `mllm`, `scheduler`, `processor`."""
        return self._json(f"{part}/{_CONFIG_FILES.get(part, 'config.json')}")

    def info(self, part: str) -> FileInfo:
        """What the weights of `part` are, from its files' headers. Raises `CheckpointError` for another model's."""
        tensors, metadata = {}, {}
        for path in self.weight_files(part):
            try:
                header = read_header(path)
            except CheckpointError as unreadable:
                raise CheckpointError(f"{unreadable} (it belongs into {part}/ of {self.name})") from unreadable
            tensors.update(header.tensors)
            metadata.update(header.metadata)
        info = classify(Header(tensors, metadata), self.path / part, has_config=True)
        refuse_unless(info, PARTS[part], f"{part}/ of {self.name}")
        return info

    def state_dict(self, part: str, dtype: torch.dtype | None = None, *, packed: bool = False) -> dict[str, Tensor]:
        """All tensors of `part` under the names they are stored with, as views of the mapped files.

        With `dtype`, weights are brought to it (fp8 scales applied); those that have it already stay views. `packed`:
        matrices in fp8, int8 and GGUF's formats stay in them, as `PackedTensor`s.
        """
        self.info(part)
        state: dict[str, Tensor] = {}
        for path in self.weight_files(part):
            state.update(read_tensors(path))
        listed = self._index(part)
        absent = [name for name in listed if name not in state]
        if absent:
            raise CheckpointError(
                f"{part}/ of {self.name} lacks {len(absent)} weights that its index lists (the first is {absent[0]}); "
                "download it again"
            )
        if dtype is None:
            return state
        return (as_stored if packed else dequantise)(state, dtype, f"{part}/ of {self.name}")

    def weight_files(self, part: str) -> list[Path]:
        """The weights of `part`: the shards that its index names, else its only safetensors or GGUF file."""
        folder = self.path / part
        if not folder.is_dir():
            raise CheckpointError(f"{self.name} lacks {part}/; {_WHERE}")
        index = self._index(part)
        if index:
            names = sorted(set(index.values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise CheckpointError(
                    f"{part}/ of {self.name} lacks {', '.join(missing)} (of {len(names)} files); download the missing "
                    "ones"
                )
            return [folder / name for name in names]
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")])
        if len(files) == 1:
            return files
        if any(file.suffix == ".gguf" for file in files):
            raise CheckpointError(
                f"{part}/ of {self.name} holds {len(files)} weight files ({', '.join(file.name for file in files)}); keep "
                "one of them"
            )
        if files:
            raise CheckpointError(
                f"{part}/ of {self.name} holds {len(files)} safetensors files and no index (*{_INDEX}) that says "
                "which belong together; download the index"
            )
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise CheckpointError(
                f"{part}/ of {self.name} holds only pickled weights, which could run code and are never loaded; get "
                "the .safetensors files"
            )
        raise CheckpointError(f"{part}/ of {self.name} holds no .safetensors or .gguf file; {_WHERE}")

    @cached_property
    def profile(self) -> ModelProfile:
        """What depends on the model's scale: `omnigen2.json`, else as published with the scheduler's base."""
        values: dict = {}
        if (self.path / "scheduler" / "scheduler_config.json").is_file():
            base = self.config("scheduler").get("time_shift_base")
            if base is not None:
                values["shift_base"] = base
        if (self.path / "omnigen2.json").is_file():
            values.update(self._json("omnigen2.json"))
        return ModelProfile.from_dict(values)

    @property
    def processor_config(self) -> dict:
        """The parsed preprocessor_config.json (pixel limits, patch size, mean, std): from processor/, else mllm/."""
        name = _CONFIG_FILES["processor"]
        only_in_mllm = (self.path / "mllm" / name).is_file() and not (self.path / "processor" / name).is_file()
        return self._json(f"mllm/{name}") if only_in_mllm else self.config("processor")

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a `tokenizer_folder`."""
        return self._find_tokenizer() is not None

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with tokenizer.json, or vocab.json and merges.txt: processor/, else mllm/."""
        found = self._find_tokenizer()
        if found is None:
            raise CheckpointError(
                f"{self.name} has no tokenizer (processor/tokenizer.json, or vocab.json and merges.txt there); {_WHERE}"
            )
        return found

    def _find_tokenizer(self) -> Path | None:
        for part in ("processor", "mllm"):
            folder = self.path / part
            if any(all((folder / name).is_file() for name in names) for names in _TOKENIZER_FILES):
                return folder
        return None

    def _index(self, part: str) -> dict[str, str]:
        """Tensor name -> file name from the part's index, empty if it has none."""
        indexes = sorted((self.path / part).glob(f"*{_INDEX}"))
        if not indexes:
            return {}
        if len(indexes) > 1:
            raise CheckpointError(
                f"{part}/ of {self.name} holds {len(indexes)} indexes ({', '.join(i.name for i in indexes)}); keep one"
            )
        weight_map = self._json(f"{part}/{indexes[0].name}").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{indexes[0].name} in {part}/ of {self.name} has no weight_map; download it again")
        outside = [name for name in weight_map.values() if Path(name).name != name]
        if outside:
            raise CheckpointError(
                f"{indexes[0].name} in {part}/ of {self.name} names a file outside its folder ({outside[0]}); it is "
                "not to be trusted"
            )
        return weight_map

    def _json(self, name: str) -> dict:
        path = self.path / name
        if not path.is_file():
            raise CheckpointError(f"{self.name} lacks {name}; {_WHERE}")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{name} of {self.name} is not valid JSON ({error}); download it again") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{name} of {self.name} does not hold a JSON object; download it again")
        return value
