"""Files of the published model in its full size that hold zeros and take no room on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from ..checkpoints import CONFIG_KEY, FileKind
from ..checkpoints.header import TensorInfo
from ..checkpoints.published import PUBLISHED_MLLM, PUBLISHED_TRANSFORMER, PUBLISHED_VAE
from ..convert.convert import ending
from ..convert.encode import Stored, encode
from ..convert.files import aligned, gguf_head, safetensors_head
from ..convert.mix import SAFETENSORS_FORMATS, choose
from ..mllm import build_mllm
from ..transformer import OmniGen2Config, OmniGen2Transformer
from ..vae import AutoencoderKL, VAEConfig

PLAIN = "bf16"
PUBLISHED = {FileKind.DIT: PUBLISHED_TRANSFORMER, FileKind.ENCODER: PUBLISHED_MLLM, FileKind.VAE: PUBLISHED_VAE}
"""The config.json of each part."""


def write_parts(folder: Path, format: str, configs: Mapping[FileKind, dict] = PUBLISHED) -> dict[FileKind, Path]:
    """Diffusion model and encoder in `format` ("bf16", or what `dev.py convert` makes) and the VAE in bf16."""
    return {
        kind: write_sparse(folder, kind, PLAIN if kind is FileKind.VAE else format, config) for kind, config in configs.items()
    }


def write_sparse(folder: Path, kind: FileKind, format: str, config: dict) -> Path:
    """One part as `dev.py convert` stores it: what the file begins with is written, its tensors are a hole."""
    infos = {
        name: TensorInfo("BF16", tuple(tensor.shape), 2 * tensor.numel()) for name, tensor in shapes(kind, config).items()
    }
    source, metadata = SimpleNamespace(tensors=infos), {CONFIG_KEY: json.dumps(config)}
    if format == PLAIN:
        stored = [Stored(name, info.dtype, info.shape, info.size, lambda: iter(())) for name, info in infos.items()]
    else:
        stored = [entry for name, info in infos.items() for entry in encode(source, name, choose(name, info, format))]
    path = folder / f"{kind.name.lower()}-{format}{'.safetensors' if format == PLAIN else ending(format)}"
    if format == PLAIN or format in SAFETENSORS_FORMATS:
        head, filled = safetensors_head(stored, metadata), lambda size: size
    else:
        about = {"general.architecture": "omnigen2", **metadata}
        head, filled = gguf_head(stored, {n: info.shape for n, info in infos.items()}, about, format.upper()), aligned
    with path.open("wb") as file:
        file.write(head)
        at = len(head)
        for entry in stored:
            if entry.name.endswith(".comfy_quant"):
                # ComfyUI's notes are read where the weights are loaded.
                file.seek(at)
                file.writelines(bytes(piece.tolist()) for piece in entry.pieces())
            at += filled(entry.size)
        file.truncate(at)
    return path


def shapes(kind: FileKind, config: dict) -> dict[str, Tensor]:
    """A part's tensors by published name, without values."""
    if kind is FileKind.ENCODER:
        model: torch.nn.Module = build_mllm(config)
    elif kind is FileKind.DIT:
        model = OmniGen2Transformer(OmniGen2Config.from_dict(config), device="meta")
    else:
        model = AutoencoderKL(VAEConfig.from_dict(config), device="meta")
    return model.state_dict()
