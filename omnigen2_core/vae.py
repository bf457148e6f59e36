"""The image autoencoder: FLUX.1's `AutoencoderKL` with diffusers' parameter names.

Images are [B, 3, H, W] in -1..1 with H and W multiples of `VAEConfig.factor` (8 in the published model). Latents
are [B, C, H/8, W/8]; `encode` and `decode` use the autoencoder's own scale, and `scale_latents` and
`unscale_latents` convert to and from the scale that the diffusion transformer works in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import CheckpointError, SizeError

NORM_EPS = 1e-6
# Attention scores held at once, in elements: 128 x 128 latents would otherwise need 16384 squared.
ATTENTION_SCORES = 2**26


@dataclass(frozen=True)
class VAEConfig:
    """The shape of the autoencoder, as diffusers' `vae/config.json` states it. Defaults are FLUX.1's."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VAEConfig":
        """Reads a diffusers config. Raises CheckpointError for an autoencoder of another kind."""
        for key in ("use_quant_conv", "use_post_quant_conv"):
            if values.get(key, False):
                raise CheckpointError(
                    f"The VAE config sets {key}, which FLUX's autoencoder does not have. "
                    "Use the VAE that comes with OmniGen2 or FLUX.1."
                )
        known = {name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None}
        if "block_out_channels" in known:
            known["block_out_channels"] = tuple(known["block_out_channels"])
        config = cls(**known)
        if not config.block_out_channels or any(c % config.norm_num_groups for c in config.block_out_channels):
            raise CheckpointError(
                f"The VAE config has block_out_channels {list(config.block_out_channels)}, which must all be multiples "
                f"of norm_num_groups {config.norm_num_groups}. Check the VAE's config.json."
            )
        return config

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class Posterior:
    """What the encoder knows of the latents: a normal distribution, both parts [B, C, h, w], unscaled."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Latents drawn with standard normal `noise` of the mean's shape. The mean itself is what inference uses."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


def _silu(x: Tensor) -> Tensor:
    # Decoding a large image is bound by the size of its activations, so inference reuses the buffer.
    return F.silu(x, inplace=not torch.is_grad_enabled())


class _ResnetBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int, operations: Any, **factory: Any):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels_in, eps=NORM_EPS, **factory)
        self.conv1 = operations.Conv2d(channels_in, channels_out, 3, padding=1, **factory)
        self.norm2 = operations.GroupNorm(groups, channels_out, eps=NORM_EPS, **factory)
        self.conv2 = operations.Conv2d(channels_out, channels_out, 3, padding=1, **factory)
        self.conv_shortcut = None
        if channels_in != channels_out:
            self.conv_shortcut = operations.Conv2d(channels_in, channels_out, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_silu(self.norm1(x)))
        h = self.conv2(_silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nn.Module):
    """Single-head self-attention over all latent pixels, with a residual connection."""

    def __init__(self, channels: int, groups: int, operations: Any, **factory: Any):
        super().__init__()
        self.group_norm = operations.GroupNorm(groups, channels, eps=NORM_EPS, **factory)
        self.to_q = operations.Linear(channels, channels, **factory)
        self.to_k = operations.Linear(channels, channels, **factory)
        self.to_v = operations.Linear(channels, channels, **factory)
        self.to_out = nn.ModuleList([operations.Linear(channels, channels, **factory)])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        rows = max(1, ATTENTION_SCORES // (batch * height * width))
        parts = [F.scaled_dot_product_attention(part, k, v) for part in q.split(rows, dim=2)]
        out = torch.cat(parts, dim=2)
        out = self.to_out[0](out.squeeze(1))
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)


class _MidBlock(nn.Module):
    def __init__(self, channels: int, config: VAEConfig, operations: Any, **factory: Any):
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(
            [_ResnetBlock(channels, channels, groups, operations, **factory) for _ in range(2)]
        )
        self.attentions = nn.ModuleList()
        if config.mid_block_add_attention:
            self.attentions.append(_Attention(channels, groups, operations, **factory))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class _Downsample(nn.Module):
    def __init__(self, channels: int, operations: Any, **factory: Any):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int, operations: Any, **factory: Any):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Stage(nn.Module):
    """Resnets at one resolution, followed by at most one change of resolution."""

    def __init__(self, channels_in: int, channels_out: int, count: int, groups: int, operations: Any, **factory: Any):
        super().__init__()
        self.resnets = nn.ModuleList(
            _ResnetBlock(channels_in if i == 0 else channels_out, channels_out, groups, operations, **factory)
            for i in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for name in ("downsamplers", "upsamplers"):
            for resample in getattr(self, name, ()):
                x = resample(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, config: VAEConfig, operations: Any, **factory: Any):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = operations.Conv2d(config.in_channels, widths[0], 3, padding=1, **factory)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            stage = _Stage(widths[max(i - 1, 0)], width, config.layers_per_block, groups, operations, **factory)
            if i < len(widths) - 1:
                stage.downsamplers = nn.ModuleList([_Downsample(width, operations, **factory)])
            self.down_blocks.append(stage)
        self.mid_block = _MidBlock(widths[-1], config, operations, **factory)
        self.conv_norm_out = operations.GroupNorm(groups, widths[-1], eps=NORM_EPS, **factory)
        self.conv_out = operations.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(_silu(self.conv_norm_out(self.mid_block(x))))


class _Decoder(nn.Module):
    def __init__(self, config: VAEConfig, operations: Any, **factory: Any):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = operations.Conv2d(config.latent_channels, widths[0], 3, padding=1, **factory)
        self.mid_block = _MidBlock(widths[0], config, operations, **factory)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            stage = _Stage(widths[max(i - 1, 0)], width, config.layers_per_block + 1, groups, operations, **factory)
            if i < len(widths) - 1:
                stage.upsamplers = nn.ModuleList([_Upsample(width, operations, **factory)])
            self.up_blocks.append(stage)
        self.conv_norm_out = operations.GroupNorm(groups, widths[-1], eps=NORM_EPS, **factory)
        self.conv_out = operations.Conv2d(widths[-1], config.out_channels, 3, padding=1, **factory)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(_silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """FLUX-shaped autoencoder. `operations` gives Conv2d, GroupNorm and Linear taking `dtype=` and `device=`."""

    def __init__(
        self,
        config: VAEConfig = VAEConfig(),
        *,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config, operations, dtype=dtype, device=device)
        self.decoder = _Decoder(config, operations, dtype=dtype, device=device)

    def encode(self, images: Tensor) -> Posterior:
        """Images [B, 3, H, W] in -1..1 to their posterior, unscaled.

        Raises SizeError unless both sides are multiples of the config's `factor`.
        """
        height, width = images.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor or not height or not width:
            raise SizeError(
                f"The VAE cannot encode an image of {width}x{height} pixels. Resize it to multiples of {factor}."
            )
        # Hosts give pixels with the channels last. On a CPU PyTorch's norms take the variance of such as a difference of
        # large numbers, which is off by a thousandth where a picture is plain.
        mean, logvar = self.encoder(images.contiguous()).chunk(2, dim=1)
        return Posterior(mean, logvar)

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents [B, C, h, w] to images [B, 3, factor*h, factor*w], about -1..1 and not clamped."""
        return self.decoder(latents)

    def scale_latents(self, latents: Tensor) -> Tensor:
        """From the autoencoder's own scale to that of the diffusion transformer."""
        return (latents - self.config.shift_factor) * self.config.scaling_factor

    def unscale_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `scale_latents`."""
        return latents / self.config.scaling_factor + self.config.shift_factor
