"""The autoencoder's cases, from weights in both layouts."""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor

from ..checkpoints import load_weights, vae_to_diffusers
from ..vae import AutoencoderKL, Posterior, VAEConfig
from .folder import GoldenFolder, MissingPart, named
from .report import Row, Ruler

TOLERANCE = 2e-5
_LAYOUTS = {"": "vae_weights", " (bfl)": "vae_weights_bfl"}


def replay_autoencoder(folder: GoldenFolder, device: torch.device, dtype: torch.dtype) -> Iterator[Row]:
    """Encoding and decoding of every case."""
    ruler, config = Ruler("vae", dtype), VAEConfig.from_dict(folder.json("vae_config"))
    cases, tensors = folder.json("vae_cases"), folder.tensors("vae_cases")
    for suffix, file in _LAYOUTS.items():
        try:
            weights = vae_to_diffusers(folder.tensors(file))
        except MissingPart as reason:
            yield ruler.skipped(f"all{suffix}", reason)
            continue
        vae = AutoencoderKL(config, device="meta")
        load_weights(vae, {name: value.to(device, dtype) for name, value in weights.items()}, file)
        for case in cases:
            values = named(tensors, str(case["index"]))
            inputs = {name: values[name].to(device, dtype) for name in ("image", "latent_to_decode")}
            for name, pairs in _compare(vae.eval(), {**values, **inputs}).items():
                yield ruler.close(f"{case['index']} {name}{suffix}", pairs, TOLERANCE)


def _compare(vae: AutoencoderKL, values: dict[str, Tensor]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    posterior = vae.encode(values["image"])
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    latents = [(vae.scale_latents(mean), values["latent_from_mean"])]
    if "posterior_noise" in values:
        sampled = Posterior(mean, logvar).sample(values["posterior_noise"].to(mean.device))
        latents.append((vae.scale_latents(sampled), values["latent_sampled"]))
    decoded = vae.decode(vae.unscale_latents(values["latent_to_decode"]))
    return {
        "posterior": [(mean, values["mean"]), (logvar, values["logvar"])],
        "latents": latents,
        "decoded": [(decoded, values["decoded"])],
    }
