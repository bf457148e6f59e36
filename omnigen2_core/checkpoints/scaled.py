"""Weights stored as fp8 (e4m3, e5m2) or int8 beside scales: packed, or brought back to a dtype that computes.

Two namings of the scales are in use: `<layer>.scale_weight` beside a marker tensor `scaled_fp8`, and
`<layer>.weight_scale` beside `<layer>.comfy_quant` (JSON in bytes) or a `_quantization_metadata` header entry. In
both, weight = stored * scale, with one scale for the tensor or one for each row. Scales of activations (`scale_input`,
`input_scale`) only matter to fp8 matrix products and are dropped. A host that computes with quantised weights only
needs this for the forms it cannot hold.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..quantised import FP8, INT8, Format, PackedTensor
from .tensors import floating

# How names of scales end, newer and older: of the weight beside them, and of what full-precision products do not need.
WEIGHT_SCALES = ("weight_scale", "scale_weight")
UNUSED_SCALES = ("input_scale", "scale_input", "scaled_fp8")
FP8_FORMAT = "float8_e4m3fn"
INT8_FORMAT = "int8_tensorwise"
"""What `comfy_quant` calls fp8, and int8 with one scale or one for each row."""
_READABLE = (FP8_FORMAT, "float8_e5m2", INT8_FORMAT)
_FORMATS = {torch.float8_e4m3fn: FP8, torch.float8_e5m2: FP8, torch.int8: INT8}


def quantisation_note(format: str) -> Tensor:
    """The bytes of `comfy_quant` for a matrix in `format`, whose products are to be computed in full.

    Products of two fp8 matrices need rows of a multiple of 16, and 2520, which every matrix of the published transformer
    but the modulation's has on one side, is none: ComfyUI would round what comes in to fp8 and, finding no product, compute
    in full.
    """
    return torch.tensor(list(json.dumps({"format": format, "full_precision_matrix_mult": True}).encode()), dtype=torch.uint8)


def as_stored(state: Mapping[str, Tensor], dtype: torch.dtype, source: str = "this file") -> dict[str, Tensor]:
    """`state` with fp8 and int8 matrices as `PackedTensor`s, their scales inside, and every other weight in `dtype`.

    Matrices that are packed already stay so. A tensor that already is in `dtype` stays the mapped view that it was.
    Raises `CheckpointError` for formats that only the host reads.
    """
    helpers = {name for name in state if _is_helper(name)}
    for name in helpers:
        if name.endswith(".comfy_quant"):
            _check_format(state[name], source)
    out = {}
    for name, tensor in state.items():
        if name not in helpers:
            tensor = _packed(tensor, _scale_of(state, name), name, source)
            stays = isinstance(tensor, PackedTensor) and tensor.ndim == 2
            out[name] = tensor.to(dtype) if not stays and (isinstance(tensor, PackedTensor) or floating(tensor)) else tensor
    return out


def dequantise(state: Mapping[str, Tensor], dtype: torch.dtype, source: str = "this file") -> dict[str, Tensor]:
    """`as_stored`, with the numbers of every packed tensor in `dtype`."""
    stored = as_stored(state, dtype, source)
    return {name: t.numbers(dtype) if isinstance(t, PackedTensor) else t for name, t in stored.items()}


def pack_int8(state: Mapping[str, Tensor], source: str = "this file") -> dict[str, Tensor]:
    """`state` with int8 matrices as `PackedTensor`s, where all quantised layers are int8; else as it is.

    A host may compute with int8 weights by rounding what enters the layer to int8 too; packed weights do not.
    """
    notes = [name for name in state if name.endswith(".comfy_quant")]
    if not notes or not all(_is_plain_int8(state[name]) for name in notes):
        return dict(state)
    layers = {name.removesuffix(".comfy_quant") for name in notes}
    out = {}
    for name, tensor in state.items():
        layer, _, last = name.rpartition(".")
        if layer not in layers or not _is_helper(name):
            packs = layer in layers and last == "weight"
            out[name] = _packed(tensor, _scale_of(state, name), name, source) if packs else tensor
    return out


def _packed(tensor: Tensor, scale: Tensor | None, name: str, source: str) -> Tensor:
    """`tensor` with its scale, if its dtype has one or needs one."""
    format: Format | None = None if isinstance(tensor, PackedTensor) else _FORMATS.get(tensor.dtype)
    if scale is None:
        return PackedTensor.from_rows(tensor, None, FP8) if format is FP8 else tensor
    if format is None:
        raise CheckpointError(
            f"{source} stores {name} as {tensor.dtype} with a scale, which is neither fp8 nor int8; load it with "
            "ComfyUI's own loaders, or get the fp16 file"
        )
    if scale.numel() not in (1, tensor.shape[0]):
        raise CheckpointError(
            f"{source} stores {name} with {scale.numel()} block scales, which only ComfyUI's own loaders read; "
            "load it there, or get the fp16 file"
        )
    return PackedTensor.from_rows(tensor, scale, format)


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


def _is_plain_int8(entry: Tensor) -> bool:
    try:
        return _format_of(entry) == (INT8_FORMAT, False)
    except (ValueError, AttributeError):
        return False


def _format_of(entry: Tensor) -> tuple[str | None, bool]:
    """What a `comfy_quant` entry calls the format, and whether the weight was rotated before it was rounded."""
    settings = json.loads(bytes(entry.tolist()))
    return settings.get("format"), bool(settings.get("convrot"))


def _check_format(entry: Tensor, source: str) -> None:
    try:
        stored_as, rotated = _format_of(entry)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{source} has a damaged comfy_quant entry ({error}); download it again") from error
    if stored_as not in _READABLE or rotated:
        raise CheckpointError(
            f"{source} is stored as {stored_as}{' after a rotation' * rotated}, which only ComfyUI's own loaders "
            "read; load it there, or get the fp16 file"
        )
