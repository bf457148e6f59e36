"""GGUF files as other programs write them, by the `gguf` package: for tests of what reads them."""

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from omnigen2_core.quantised import GGUF_FORMATS

_LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def write_gguf(
    path: Path,
    tensors: dict[str, Tensor],
    format: str = "Q8_0",
    *,
    architecture: str = "omnigen2",
    metadata: dict[str, str] | None = None,
    flatten: bool = False,
    vocabulary: int = 0,
) -> Path:
    """Matrices whose rows divide in `format` (with `flatten`, those that divide as a whole too, with their shapes in the
    metadata), everything else in F16, one-dimensional tensors in F32.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for key, text in (metadata or {}).items():
        writer.add_string(key, text)
    if vocabulary:
        writer.add_token_list([f"token {i}" for i in range(vocabulary)])
    kind = gguf.GGMLQuantizationType[format]
    values = gguf.GGML_QUANT_SIZES[kind][0]
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            writer.add_tensor(name, tensor.float().numpy())
            continue
        shape = tuple(tensor.shape)
        stored = tensor.float()
        if tensor.ndim == 2 and shape[-1] % values and tensor.numel() % values == 0 and flatten:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(size) for size in shape])
            stored = stored.reshape(-1, values)
        if tensor.ndim == 2 and stored.shape[-1] % values == 0 and format not in ("F16", "F32", "BF16"):
            writer.add_tensor(name, _encode(stored, format), raw_dtype=kind)
        elif format == "BF16":
            writer.add_tensor(name, gguf.quants.quantize(stored.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, stored.numpy().astype(np.float32 if format == "F32" else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's text weights under llama.cpp's names; the vision tower, which has a file of its own there, is left out."""
    out = {}
    for name, tensor in weights.items():
        if name.startswith("visual."):
            continue
        for published, theirs in _LLAMA.items():
            name = name.replace(published, theirs)
        out[name] = tensor
    return out


def _encode(numbers: Tensor, format: str) -> np.ndarray:
    """By the package where it writes the format, else by our encoder."""
    try:
        return gguf.quants.quantize(numbers.numpy(), gguf.GGMLQuantizationType[format])
    except NotImplementedError:
        entry = GGUF_FORMATS[format]
        blocks = entry.encode(numbers.reshape(-1, entry.values))
        return blocks.reshape(len(numbers), -1).numpy()


def blocks(format: str, count: int = 64, seed: int = 0) -> Tensor:
    """Blocks of every bit pattern, their fp16 fields finite."""
    entry = GGUF_FORMATS[format]
    draw = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count, entry.size), dtype=torch.uint8, generator=draw)
    for at in HALVES[format]:
        raw[:, at : at + 2] = (torch.randn(count, 1, generator=draw) * 0.01).to(torch.float16).view(torch.uint8)
    return raw


HALVES = {
    "Q8_0": (0,), "Q6_K": (208,), "Q5_K": (0, 2), "Q5_1": (0, 2), "Q5_0": (0,), "Q4_K": (0, 2), "Q4_1": (0, 2),
    "Q4_0": (0,), "Q3_K": (108,), "Q2_K": (80, 82),
}
"""Where the fp16 fields of a format's blocks begin."""
