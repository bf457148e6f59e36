"""Small files in the layouts that people have: the authors' folder, ComfyUI's single files, fp8, and files that must be
refused.

The weights are the golden ones, so what is loaded from any layout can be compared with the reference's numbers.
"""

import json
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnigen2_core.checkpoints import CONFIG_KEY, PROFILE_KEY

FP8_LARGEST = 448.0


def golden_config(golden: Path, part: str) -> dict:
    """The config of a golden part: transformer, vae, mllm."""
    if part == "mllm":
        return json.loads((golden / "mllm.json").read_text(encoding="utf-8"))["config"]
    return json.loads((golden / f"{'dit' if part == 'transformer' else part}_config.json").read_text(encoding="utf-8"))


def golden_weights(golden: Path, part: str) -> dict[str, Tensor]:
    """The weights of a golden part; `vae_bfl` is the VAE under the names of ae.safetensors."""
    if part == "vae_bfl":
        vae, names = golden_weights(golden, "vae"), json.loads((golden / "vae_bfl_names.json").read_text(encoding="utf-8"))
        return {name: vae[same["is"]].reshape(same["shape"]) for name, same in names.items()}
    names = {"transformer": "dit_weights", "vae": "vae_weights", "mllm": "mllm_weights"}
    return load_file(golden / f"{names[part]}.safetensors")


# The authors' folder


def write_folder(
    path: Path, golden: Path, *, profile: dict | None = None, tokenizer: Path | None = None, shards: int = 3
) -> Path:
    """The golden model as a folder; transformer and mllm in `shards` files with an index, the VAE in one.

    tokenizer: a folder whose files go into processor/. Without one, processor/ gets a placeholder that no tokenizer
    reads.
    """
    write_part(path, "transformer", golden, shards=shards)
    write_part(path, "mllm", golden, shards=shards)
    write_part(path, "vae", golden, shards=1)
    _write_json(path / "scheduler" / "scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    pixels = json.loads((golden / "mllm.json").read_text(encoding="utf-8"))["config"].get("vision_config", {})
    _write_json(
        path / "processor" / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": pixels.get("patch_size", 14),
            "temporal_patch_size": pixels.get("temporal_patch_size", 2),
            "merge_size": pixels.get("spatial_merge_size", 2),
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    if tokenizer is None:
        _write_json(path / "processor" / "tokenizer.json", {})
    else:
        shutil.copytree(tokenizer, path / "processor", dirs_exist_ok=True)
    if profile is not None:
        _write_json(path / "omnigen2.json", profile)
    return path


def write_part(path: Path, part: str, golden: Path, *, shards: int) -> None:
    """One part of the folder with its config.json."""
    base = "model" if part == "mllm" else "diffusion_pytorch_model"
    folder = path / part
    _write_json(folder / "config.json", golden_config(golden, part))
    weights = golden_weights(golden, part)
    if shards == 1:
        save_file(weights, folder / f"{base}.safetensors")
        return
    names, weight_map = sorted(weights), {}
    for i in range(shards):
        file = f"{base}-{i + 1:05d}-of-{shards:05d}.safetensors"
        shard = {name: weights[name] for name in names[i::shards]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    _write_json(
        folder / f"{base}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


# Single files


def write_single(
    path: Path,
    golden: Path,
    part: str,
    *,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    profile: dict | None = None,
    with_config: bool = True,
    keep=lambda name: True,
) -> Path:
    """A golden part as one file: `transformer`, `mllm`, `vae` (diffusers' names), `vae_bfl`. `keep` chooses tensors "
    "by name."""
    weights = {name: t for name, t in golden_weights(golden, part).items() if keep(name)}
    if dtype is not None:
        weights = {name: t.to(dtype) for name, t in weights.items()}
    return save_single(
        path, weights, golden_config(golden, part.removesuffix("_bfl")) if with_config else None, prefix, profile
    )


def save_single(
    path: Path, weights: dict[str, Tensor], config: dict | None, prefix: str = "", profile: dict | None = None
) -> Path:
    """Write `weights` behind `prefix`, with their config and profile in the metadata."""
    metadata = {"format": "pt"}
    if config is not None:
        metadata[CONFIG_KEY] = json.dumps(config)
    if profile is not None:
        metadata[PROFILE_KEY] = json.dumps(profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata=metadata)
    return path


# fp8


def to_fp8(weights: dict[str, Tensor], style: str) -> dict[str, Tensor]:
    """Every matrix of a block as e4m3. `style`: "cast" (no scales), "scale_weight" or "weight_scale" (the older and "
    "the newer naming)."""
    out = {}
    for name, tensor in weights.items():
        if tensor.ndim != 2 or not _in_block(name):
            out[name] = tensor
        elif style == "cast":
            out[name] = tensor.to(torch.float8_e4m3fn)
        else:
            layer = name.removesuffix(".weight")
            scale = tensor.float().abs().max() / FP8_LARGEST
            out[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            out[f"{layer}.{style}"] = scale.reshape(1) if style == "scale_weight" else scale
            if style == "weight_scale":
                out[f"{layer}.comfy_quant"] = _bytes_tensor(json.dumps({"format": "float8_e4m3fn"}))
            else:
                out[f"{layer}.scale_input"] = torch.ones(1)
    if style == "scale_weight":
        out["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return out


def _in_block(name: str) -> bool:
    return name.startswith(("layers.", "noise_refiner.", "ref_image_refiner.", "context_refiner.", "model.layers."))


def _bytes_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode("utf-8")), dtype=torch.uint8)


# Files that must be refused


FOREIGN = {
    "flux": {
        "img_in.weight": [3072, 64],
        "double_blocks.0.img_attn.qkv.weight": [9216, 3072],
        "single_blocks.0.linear1.weight": [21504, 3072],
    },
    "flux_diffusers": {
        "context_embedder.weight": [3072, 4096],
        "single_transformer_blocks.0.attn.to_q.weight": [3072, 3072],
    },
    "boogu": {
        "time_caption_embed.timestep_embedder.linear_1.bias": [1024],
        "double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight": [3360, 3360],
        "x_embedder.weight": [3360, 64],
        "ref_image_patch_embedder.weight": [3360, 64],
    },
    "lumina2": {
        "time_caption_embed.timestep_embedder.linear_1.bias": [1024],
        "time_caption_embed.caption_embedder.1.weight": [2304, 2304],
        "x_embedder.weight": [2304, 64],
        "layers.0.attn.to_q.weight": [2304, 2304],
    },
    "encoder_7b": {
        "model.embed_tokens.weight": [152064, 3584],
        "model.layers.0.self_attn.k_proj.weight": [512, 3584],
        "model.layers.0.self_attn.k_proj.bias": [512],
        "visual.patch_embed.proj.weight": [1280, 3, 2, 14, 14],
    },
    "qwen3": {
        "model.layers.0.self_attn.k_proj.weight": [1024, 2560],
        "model.layers.0.self_attn.q_norm.weight": [128],
    },
    "t5": {"encoder.block.0.layer.0.SelfAttention.q.weight": [4096, 4096], "shared.weight": [32128, 4096]},
    "sd_vae": {
        "encoder.conv_in.weight": [128, 3, 3, 3],
        "decoder.conv_in.weight": [512, 4, 3, 3],
        "quant_conv.weight": [8, 8, 1, 1],
    },
    "flux2_vae": {
        "encoder.conv_in.weight": [128, 3, 3, 3],
        "decoder.conv_in.weight": [512, 32, 3, 3],
        "bn.running_mean": [128],
    },
    "unknown": {"something.else": [2, 2]},
}
"""Names and shapes by which other models' files are known."""


def write_pickle(path: Path) -> Path:
    """A torch.save file, whatever its name ends in."""
    torch.save({"x_embedder.weight": torch.zeros(2, 2)}, path)
    return path


def truncate(path: Path, keep: float = 0.5) -> Path:
    """Cut a file, as an interrupted download leaves it."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


# Large files


def write_large_dit(path: Path, gb: float, golden: Path) -> Path:
    """A transformer of the published width with as few layers as make `gb` (10^9 bytes) of bf16. All zero, and "
    "sparse on disk."""
    real = json.loads((golden / "real_keys.json").read_text(encoding="utf-8"))["omnigen2_transformer"]
    shapes = {name: shape for name, shape in real.items() if not name.startswith("layers.")}
    for layer in range(32):
        shapes |= {name: shape for name, shape in real.items() if name.startswith(f"layers.{layer}.")}
        if 2 * _elements(shapes) >= gb * 1e9:
            break
    return write_sparse(path, shapes)


def write_sparse(path: Path, shapes: dict[str, list[int]], dtype: str = "BF16", width: int = 2) -> Path:
    """A safetensors file of zeros that takes no room on disk: the header is written, the data is a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = width * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def _elements(shapes: dict[str, list[int]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
