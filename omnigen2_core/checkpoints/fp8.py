"""Weights stored as fp8 (e4m3, e5m2), with and without scales, brought back to a dtype that computes.

Two namings of the scales are in use: `<layer>.scale_weight` beside a marker tensor `scaled_fp8`, and
`<layer>.weight_scale` beside `<layer>.comfy_quant` (JSON in bytes) or a `_quantization_metadata` header entry. In
both, weight = stored * scale. Scales of activations (`scale_input`, `input_scale`) only matter to fp8 matrix products
and are dropped. A host that computes with quantised weights only needs this for the forms it cannot hold.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .tensors import floating

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# How names of scales end, newer and older: of the weight beside them, and of what full-precision products do not need.
WEIGHT_SCALES = ("weight_scale", "scale_weight")
UNUSED_SCALES = ("input_scale", "scale_input", "scaled_fp8")
_READABLE = ("float8_e4m3fn", "float8_e5m2")


def dequantise(state: Mapping[str, Tensor], dtype: torch.dtype, source: str = "this file") -> dict[str, Tensor]:
    """The floating-point tensors of `state` in `dtype`, scales applied and their entries removed.

    A tensor that already is in `dtype` stays the mapped view that it was. Raises `CheckpointError` for formats that
    only the host reads.
    """
    helpers = {name for name in state if _is_helper(name)}
    for name in helpers:
        if name.endswith(".comfy_quant"):
            _check_format(state[name], source)
    plain = {}
    for name, tensor in state.items():
        if name in helpers:
            continue
        scale = _scale_of(state, name)
        if tensor.dtype in FP8:
            if scale is None:
                tensor = tensor.to(dtype)
            else:
                tensor = (tensor.to(torch.float32) * _spread(scale, tensor, name, source)).to(dtype)
        elif scale is not None:
            raise CheckpointError(
                f"{source} stores {name} as {tensor.dtype} with a scale, which is not fp8; load it with ComfyUI's own "
                "loaders, or get the fp16 file"
            )
        elif floating(tensor):
            tensor = tensor.to(dtype)
        plain[name] = tensor
    return plain


def _is_helper(name: str) -> bool:
    return name.rpartition(".")[2] in (*WEIGHT_SCALES, *UNUSED_SCALES, "comfy_quant")


def _scale_of(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    layer, _, last = name.rpartition(".")
    if last != "weight":
        return None
    for suffix in WEIGHT_SCALES:
        if f"{layer}.{suffix}" in state:
            return state[f"{layer}.{suffix}"]
    return None


def _spread(scale: Tensor, weight: Tensor, name: str, source: str) -> Tensor:
    """One scale for the tensor, or one for each of its rows."""
    if scale.numel() not in (1, weight.shape[0]):
        raise CheckpointError(
            f"{source} stores {name} with {scale.numel()} block scales, which only ComfyUI's own loaders read; "
            "load it there, or get the fp16 file"
        )
    return scale.to(torch.float32).reshape(-1, *([1] * (weight.ndim - 1)))


def _check_format(entry: Tensor, source: str) -> None:
    try:
        stored_as = json.loads(bytes(entry.tolist())).get("format")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{source} has a damaged comfy_quant entry ({error}); download it again") from error
    if stored_as not in _READABLE:
        raise CheckpointError(
            f"{source} is stored as {stored_as}, which only ComfyUI's own loaders read; load it there, or get the "
            "fp16 file"
        )
