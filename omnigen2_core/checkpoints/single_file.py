"""ComfyUI's single files: one safetensors or GGUF file a part, without a config.

The config comes from the file's metadata (`omnigen2_config`) if it has one. Otherwise the published one is assumed
wherever shapes cannot tell, and the shapes must be such that it can be right.
"""

import re
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..profile import ModelProfile
from .identify import CONFIG_KEY, PROFILE_KEY, FileInfo, FileKind
from .keymaps import is_diffusers_vae, vae_to_diffusers
from .published import PUBLISHED_MLLM, PUBLISHED_TRANSFORMER, PUBLISHED_VAE
from .refusals import require
from .scaled import as_stored, dequantise
from .tensors import read_tensors


class SingleFile:
    """One part of OmniGen2 in one file. Raises `CheckpointError` in one sentence if the file is not of
    `kind`.

    Attributes: `info` (what the file is) and `path`.
    """

    def __init__(self, path: str | Path, kind: FileKind):
        self.path = Path(path)
        self.info = require(self.path, kind)

    @cached_property
    def config(self) -> dict:
        """The config that the part would have in a folder."""
        return config_of(self.info)

    @cached_property
    def profile(self) -> ModelProfile:
        """What depends on the model's scale: the metadata entry `omnigen2_profile`, else the published values."""
        return ModelProfile.from_dict(self.info.embedded(PROFILE_KEY) or {})

    def state_dict(self, dtype: torch.dtype | None = None, *, packed: bool = False) -> dict[str, Tensor]:
        """The part's tensors as views of the mapped file, without prefix; a VAE under diffusers' names.

        With `dtype`, weights are brought to it (fp8 scales applied); those that have it already stay views. `packed`:
        matrices in fp8, int8 and GGUF's formats stay in them, as `PackedTensor`s.
        """
        prefix = self.info.prefix
        names = [name for name in self.info.header.tensors if name.startswith(prefix)]
        state = {name[len(prefix) :]: tensor for name, tensor in read_tensors(self.path, names).items()}
        if self.info.kind is FileKind.VAE:
            state = vae_to_diffusers(state)
        if dtype is None:
            return state
        return (as_stored if packed else dequantise)(state, dtype, self.path.name)


def config_of(info: FileInfo) -> dict:
    """The config of a single file: its metadata's, else the published one with what the shapes say."""
    config = info.embedded(CONFIG_KEY)
    if config is not None:
        return config
    return {FileKind.DIT: _transformer, FileKind.ENCODER: _mllm, FileKind.VAE: _vae}[info.kind](info)


def _transformer(info: FileInfo) -> dict:
    width, patch = _shape(info, "x_embedder.weight")
    (head,) = _shape(info, "layers.0.attn.norm_q.weight")
    feed_forward = _shape(info, "layers.0.feed_forward.linear_1.weight")[0]
    _agree(info, "numbers in a patch", patch, 64)
    _agree(info, "width of an attention head", head, 120)
    _agree(info, "feed-forward width", feed_forward, 256 * -(-4 * width // 256))
    return PUBLISHED_TRANSFORMER | {
        "hidden_size": width,
        "num_layers": _count(info, "layers"),
        "num_refiner_layers": _count(info, "noise_refiner"),
        "num_attention_heads": _shape(info, "layers.0.attn.to_q.weight")[0] // head,
        "num_kv_heads": _shape(info, "layers.0.attn.to_k.weight")[0] // head,
        "text_feat_dim": _shape(info, "time_caption_embed.caption_embedder.0.weight")[0],
    }


def _mllm(info: FileInfo) -> dict:
    body = "model.language_model." if info.shape("model.language_model.norm.weight") else "model."
    rows, hidden = _shape(info, body + "embed_tokens.weight")
    _agree(info, "hidden size", hidden, PUBLISHED_MLLM["hidden_size"])
    return PUBLISHED_MLLM | {
        "num_hidden_layers": _count(info, body + "layers"),
        "intermediate_size": _shape(info, body + "layers.0.mlp.gate_proj.weight")[0],
        "vocab_size": rows,
    }


def _vae(info: FileInfo) -> dict:
    diffusers = is_diffusers_vae(info.names())
    stage = "encoder.down_blocks.{}.resnets.0.conv1.weight" if diffusers else "encoder.down.{}.block.0.conv1.weight"
    widths = [
        _shape(info, stage.format(i))[0]
        for i in range(_count(info, "encoder.down_blocks" if diffusers else "encoder.down"))
    ]
    _agree(info, "list of widths", widths, PUBLISHED_VAE["block_out_channels"])
    return PUBLISHED_VAE


def _shape(info: FileInfo, name: str) -> tuple[int, ...]:
    shape = info.shape(name)
    if shape is None:
        raise CheckpointError(f"{info.name} lacks {name}; it is incomplete, download it again")
    return shape


def _count(info: FileInfo, stack: str) -> int:
    """Number of modules in a list, from the highest index among the names."""
    pattern = re.compile(re.escape(stack) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, info.names()) if match), default=-1)


def _agree(info: FileInfo, what: str, found: object, published: object) -> None:
    if found != published:
        raise CheckpointError(
            f"{info.name} has another {what} ({found}) than the published model ({published}) and no config in its "
            f"metadata ({CONFIG_KEY}); "
            "load it as a folder with its config.json instead"
        )
