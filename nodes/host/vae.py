"""The core autoencoder as ComfyUI's VAE, for every width and both weight layouts."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any, Iterator, Mapping

import torch

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
from comfy.latent_formats import Flux

from ...omnigen2_core.checkpoints import load_weights
from ...omnigen2_core.vae import AutoencoderKL, VAEConfig
from ...omnigen2_core.vae_bands import decode_in_bands, encode_in_bands
from .parts import Part
from .taking_over import takes_over, to_load


class _HostAutoencoder(AutoencoderKL):
    """Tensors in and out, as `comfy.sd.VAE` expects: the mean, so that a reference is the same in every run.

    A MODEL scales latents by FLUX's constants and never sees the VAE's config. So latents of a VAE that was trained
    with other constants leave here such that FLUX's bring them to the transformer's scale, and come back likewise.
    """

    def __init__(self, config: VAEConfig, **factory: Any):
        super().__init__(config, **factory)
        self._flux = Flux()
        self._is_flux = (config.scaling_factor, config.shift_factor) == (
            self._flux.scale_factor,
            self._flux.shift_factor,
        )

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self._given_latents(super().encode(images).mean)

    def encode_tiled(self, images: torch.Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 0) -> torch.Tensor:
        """As `decode_tiled`, as much at once as a tile of so many pixels."""
        return self._given_latents(encode_in_bands(self, images, tile_x * tile_y).mean)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super().decode(self._own_latents(latents))

    def decode_tiled(self, latents: torch.Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 0) -> torch.Tensor:
        """What core calls where the whole does not fit and for its node: as much at once as a tile of so many latents.

        Bands leave no seams, so nothing has to overlap.
        """
        return decode_in_bands(self, self._own_latents(latents), tile_x * tile_y * self.config.factor**2)

    def _given_latents(self, mean: torch.Tensor) -> torch.Tensor:
        return mean if self._is_flux else self._flux.process_out(self.scale_latents(mean))

    def _own_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return latents if self._is_flux else self.unscale_latents(self._flux.process_in(latents))


class OmniGen2VAE(comfy.sd.VAE):
    """A native VAE around `AutoencoderKL`; VAE Decode, its tiled form and VAE Encode take it as any other.

    Core's own class builds only the published channel widths. Latents are [B, 16, H/8, W/8], unscaled.
    """

    def __init__(self, part: Part, *, device: torch.device | None = None, disable_dynamic: bool = False):
        """Raises CheckpointError unless the weights of `part` fit its config."""
        config = VAEConfig.from_dict(part.config)
        weights = part.weights()
        # Core's layers take what fits and log the rest; a throw-away module says first whether everything does.
        load_weights(AutoencoderKL(config, device="meta"), weights, part.source)
        with _without_core_warning():
            super().__init__(sd={})  # an empty file: core sets its defaults and builds no model
        self.latent_channels = config.latent_channels
        self.downscale_ratio = self.upscale_ratio = config.factor
        self.device = device or comfy.model_management.vae_device()
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = comfy.model_management.intermediate_device()
        self.handles_tiling = True

        storage = self._storage_dtype(weights)
        operations = comfy.ops.disable_weight_init if storage is self.vae_dtype else comfy.ops.manual_cast
        model = _HostAutoencoder(config, operations=operations, dtype=storage, device="cpu").eval()
        self.first_stage_model = model
        comfy.model_management.archive_model_dtypes(model)
        patcher = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = patcher(
            model, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        weights, assign = to_load(model, weights, pages=self.patcher.is_dynamic(), load_device=self.device)
        model.load_state_dict(weights, strict=False, assign=assign)
        self.model_size()

    def encode_tiled_(self, pixel_samples: torch.Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 0) -> torch.Tensor:
        """What core calls where the whole does not fit and for its node. Unlike its decoding it does not ask the model here."""
        return self._encode_tiled_owned(pixel_samples, tile_x=tile_x, tile_y=tile_y)

    def _storage_dtype(self, weights: Mapping[str, torch.Tensor]) -> torch.dtype:
        """What the weights are kept in: where they are the mapped file's, its own dtype, from which layers cast on use."""
        stored = comfy.utils.weight_dtype(weights)
        half = stored in (torch.bfloat16, torch.float16)
        return stored if half and takes_over(self.device) else self.vae_dtype


@contextmanager
def _without_core_warning() -> Iterator[None]:
    """Keeps core from telling the user that an empty VAE file was loaded; everything else is logged as ever."""

    def keep(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
