"""Names of the VAE's weights in the two layouts in use. Both functions accept either layout and are exact inverses.

diffusers: `encoder.down_blocks.0.resnets.1.conv1`. BFL, as in ae.safetensors: `encoder.down.0.block.1.conv1`, attention
as 1x1 convolutions, and decoder stages counted in reverse.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION_WEIGHT = re.compile(
    r"\.mid(_block)?\.(attn_1\.(q|k|v|proj_out)|attentions\.0\.(to_q|to_k|to_v|to_out\.0))\.weight$"
)


def vae_to_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VAE weights under the names of ae.safetensors."""
    if not is_diffusers_vae(state):
        return dict(state)
    last = _last_stage(state, r"decoder\.up_blocks\.(\d+)\.")
    return {_to_bfl(name, last): _as_convolution(name, tensor) for name, tensor in state.items()}


def vae_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VAE weights under diffusers' names."""
    if is_diffusers_vae(state):
        return {_modern_attention(name): tensor for name, tensor in state.items()}
    last = _last_stage(state, r"decoder\.up\.(\d+)\.")
    return {_to_diffusers(name, last): _as_matrix(name, tensor) for name, tensor in state.items()}


def is_diffusers_vae(names: Iterable[str]) -> bool:
    """Whether VAE weights have diffusers' names rather than BFL's."""
    return any(name.startswith(("decoder.up_blocks.", "encoder.down_blocks.")) for name in names)


def _last_stage(names: Iterable[str], pattern: str) -> int:
    return max((int(match[1]) for match in (re.match(pattern, name) for name in names) if match), default=0)


def _to_bfl(name: str, last: int) -> str:
    name = _modern_attention(name)
    name = re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2.", name)
    name = re.sub(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", name)
    name = re.sub(
        r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"decoder.up.{last - int(m[1])}.block.{m[2]}.", name
    )
    name = re.sub(
        r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"decoder.up.{last - int(m[1])}.upsample.", name
    )
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    for theirs, ours in _ATTENTION.items():
        name = name.replace(f".mid_block.attentions.0.{theirs}.", f".mid.attn_1.{ours}.")
    return name.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")


def _to_diffusers(name: str, last: int) -> str:
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    name = re.sub(
        r"^decoder\.up\.(\d+)\.block\.(\d+)\.", lambda m: f"decoder.up_blocks.{last - int(m[1])}.resnets.{m[2]}.", name
    )
    name = re.sub(
        r"^decoder\.up\.(\d+)\.upsample\.", lambda m: f"decoder.up_blocks.{last - int(m[1])}.upsamplers.0.", name
    )
    name = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    for theirs, ours in _ATTENTION.items():
        name = name.replace(f".mid.attn_1.{ours}.", f".mid_block.attentions.0.{theirs}.")
    return name.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")


def _modern_attention(name: str) -> str:
    """Names that diffusers wrote for attention before 0.18."""
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(f".mid_block.attentions.0.{old}.", f".mid_block.attentions.0.{new}.")
    return name


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim == 2 and _ATTENTION_WEIGHT.search(_modern_attention(name)):
        return tensor[:, :, None, None]
    return tensor


def _as_matrix(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim == 4 and _ATTENTION_WEIGHT.search(name):
        return tensor[:, :, 0, 0]
    return tensor
