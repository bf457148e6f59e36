"""The sentences with which a wrong file is refused: what it is, what was expected, where the right one goes."""

from pathlib import Path

from ..errors import CheckpointError
from .identify import FileInfo, FileKind, identify

_EXPECTED = {
    FileKind.DIT: ("the OmniGen2 diffusion model", "models/diffusion_models/omnigen2_fp16.safetensors"),
    FileKind.ENCODER: ("the Qwen2.5-VL-3B encoder", "models/text_encoders/qwen_2.5_vl_fp16.safetensors"),
    FileKind.VAE: ("the FLUX.1 VAE", "models/vae/ae.safetensors"),
    FileKind.LORA: ("an OmniGen2 LoRA", "models/loras/"),
}
_OWN_NODE = {
    FileKind.DIT: "OmniGen2 Load Diffusion Model",
    FileKind.ENCODER: "OmniGen2 Load Encoder",
    FileKind.VAE: "OmniGen2 Load VAE",
    FileKind.LORA: "OmniGen2 Load LoRA",
}


def require(path: str | Path, kind: FileKind) -> FileInfo:
    """Identify the file at `path` and return what it is if that is `kind`; otherwise raise `CheckpointError`."""
    try:
        info = identify(path)
    except CheckpointError as unreadable:
        expected, place = _EXPECTED[kind]
        raise CheckpointError(f"{unreadable} ({expected} was expected, which goes to {place})") from unreadable
    refuse_unless(info, kind)
    return info


def refuse_unless(info: FileInfo, kind: FileKind, where: str | None = None) -> None:
    """Raise `CheckpointError` if `info` is not of `kind`. `where` names it in the message (default: the file's name)."""
    if info.kind is kind:
        return
    expected, place = _EXPECTED[kind]
    where = where or info.name
    sentence = f"{where} is {info.what}, but {expected} was expected"
    if info.kind in _OWN_NODE:
        folder = _EXPECTED[info.kind][1].rpartition("/")[0]
        sentence += f" ({place}); this file belongs into {folder}/ and is loaded with {_OWN_NODE[info.kind]}"
    else:
        sentence += f"; the right one goes to {place}"
    raise CheckpointError(sentence)


def require_vision(info: FileInfo) -> None:
    """Raise `CheckpointError` if the encoder `info` has no vision tower, which reading images needs."""
    if not info.has_vision:
        raise CheckpointError(
            f"{info.name} has no vision tower (visual.*), so this encoder reads text but cannot see images; "
            "get an encoder file with it: models/text_encoders/qwen_2.5_vl_fp16.safetensors, or the mllm/ folder of "
            "OmniGen2"
        )
