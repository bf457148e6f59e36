"""Writing the nano model as a folder in the published layout."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..profile import ModelProfile
from . import autoencoder, drawing, encoder
from .tokens import build_tokenizer, save_tokenizer
from .world import DEFAULT_SIZE

WEIGHTS = Path(__file__).parent / "weights" / "OmniGen2-nano"
"""Where the built-in model lies."""

PROFILE = ModelProfile(
    name="OmniGen2-nano",
    shift_base=drawing.SHIFT_BASE,
    max_pixels=128 * 128,
    max_side=128,
    min_reference_side=48,
    default_width=DEFAULT_SIZE[0],
    default_height=DEFAULT_SIZE[1],
    steps=12,
    text_guidance=2.0,
    image_guidance=1.5,
    # Guidance in the last steps makes colours too strong.
    guidance_end=0.8,
    trained_reflection=True,
)


def _write_json(path: Path, values: Mapping) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")


def _write_weights(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: w.detach().to(dtype).contiguous() for name, w in weights.items()}, path, metadata={"format": "pt"})


def write_folder(
    path: str | Path,
    *,
    transformer: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    latent_statistics: Mapping[str, float],
    mllm: Mapping[str, Tensor],
    profile: ModelProfile = PROFILE,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes weights (in `dtype`), configs, tokenizer and profile. `latent_statistics`: scaling_factor and shift_factor."""
    path = Path(path)
    _write_weights(path / "transformer" / "diffusion_pytorch_model.safetensors", transformer, dtype)
    _write_json(path / "transformer" / "config.json", {"_class_name": "OmniGen2Transformer2DModel", **asdict(drawing.CONFIG)})
    _write_weights(path / "vae" / "diffusion_pytorch_model.safetensors", vae, dtype)
    levels = len(autoencoder.CONFIG.block_out_channels)
    vae_config = {
        "_class_name": "AutoencoderKL",
        **asdict(replace(autoencoder.CONFIG, **latent_statistics)),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": True,
        "sample_size": DEFAULT_SIZE[0],
    }
    _write_json(path / "vae" / "config.json", vae_config)
    _write_weights(path / "mllm" / "model.safetensors", mllm, dtype)
    _write_json(path / "mllm" / "config.json", encoder.config(build_tokenizer()))
    save_tokenizer(path / "processor")
    pixels = encoder.PIXELS
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": pixels.patch_size,
        "temporal_patch_size": pixels.temporal_patch_size,
        "merge_size": pixels.merge_size,
        "min_pixels": pixels.min_pixels,
        "max_pixels": pixels.max_pixels,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }
    _write_json(path / "processor" / "preprocessor_config.json", preprocessor)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "dynamic_time_shift": True}
    _write_json(path / "scheduler" / "scheduler_config.json", {**scheduler, "time_shift_base": profile.shift_base})
    _write_json(path / "omnigen2.json", profile.to_dict())
