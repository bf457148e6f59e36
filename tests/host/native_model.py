"""A small OmniGen2 that ComfyUI's own class can hold too: it has no feed-forward multiplier. Weights are random."""

from __future__ import annotations

from pathlib import Path

import torch
from make_checkpoints import golden_config, save_single

from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

FILE = "native.safetensors"


def install_native(models: Path, golden: Path, name: str = FILE, largest: dict[str, float] | None = None) -> str:
    """Puts the model into models/diffusion_models, with its config in the metadata; returns its name there.

    largest: weights whose name ends with a key are scaled until that is their maximum.
    """
    path = models / "diffusion_models" / name
    if not path.is_file():
        config = golden_config(golden, "transformer") | {"ffn_dim_multiplier": None, "num_layers": 2, "num_refiner_layers": 1}
        generator = torch.Generator().manual_seed(3)
        weights = {}
        for name, tensor in OmniGen2Transformer(OmniGen2Config.from_dict(config), device="meta").state_dict().items():
            values = torch.randn(tensor.shape, generator=generator)
            is_norm = tensor.ndim == 1 and name.endswith("weight")
            weights[name] = 1 + 0.1 * values if is_norm else values * (0.5 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5)
            for ending, maximum in (largest or {}).items():
                if name.endswith(ending):
                    weights[name] *= maximum / weights[name].abs().max()
        save_single(path, weights, config)
    return path.name
