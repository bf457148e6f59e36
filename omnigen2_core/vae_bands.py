"""Decoding and encoding in bands of rows, where a picture's activations do not fit the device: the same, to rounding.

Tiles that are computed by themselves and blended show seams, since each is normalised by its own mean and spread and its
attention sees nothing of the others. Here a layer has been computed for the whole picture before the next one begins, band by
band, each with the rows beside it that a convolution sees, and norms take the mean and spread of all bands. What is whole
lies in the host's memory; on the device are the picture at the latents' resolution, a 64th of it, and one band.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inference import plain_weight
from .vae import AutoencoderKL, Posterior

STORE = torch.device("cpu")
"""Where whole activations lie."""
_SEEN = 1
"""Rows beside its own that a convolution sees on each side."""


@torch.inference_mode()
def decode_in_bands(vae: AutoencoderKL, latents: Tensor, pixels: int) -> Tensor:
    """`vae.decode(latents)` with so many pixels of the picture at once, as whole rows, at least one.

    latents: [B, C, h, w], unscaled, on the device and in the dtype to compute in. Returns images [B, 3, factor*h, factor*w]
    on the CPU. Where a layer has more channels than the last ones, it gets as many fewer pixels.
    """
    bands = _Bands(latents.device, pixels * vae.config.block_out_channels[0])
    return torch.cat([_decode(vae.decoder, one, bands) for one in latents.split(1)])


@torch.inference_mode()
def encode_in_bands(vae: AutoencoderKL, images: Tensor, pixels: int) -> Posterior:
    """`vae.encode(images)` with so many pixels of the picture at once, as whole rows, at least two.

    images: [B, 3, H, W] in -1..1, on the device and in the dtype to compute in; both sides multiples of the config's factor.
    Returns the posterior on the device. Where a layer has more channels than the first ones, it gets as many fewer pixels.
    """
    bands = _Bands(images.device, pixels * vae.config.block_out_channels[0])
    moments = torch.cat([_encode(vae.encoder, one, bands) for one in images.split(1)])
    return Posterior(*moments.chunk(2, dim=1))


def _encode(encoder: nn.Module, images: Tensor, bands: "_Bands") -> Tensor:
    x = bands.map(encoder.conv_in, images)
    for stage in encoder.down_blocks:
        for resnet in stage.resnets:
            x = _resnet(resnet, x, bands)
        for downsample in getattr(stage, "downsamplers", ()):
            x = bands.halve(downsample, x)
    x = encoder.mid_block(x.to(bands.device))
    return encoder.conv_out(F.silu(encoder.conv_norm_out(x)))


def _decode(decoder: nn.Module, latents: Tensor, bands: "_Bands") -> Tensor:
    x = decoder.mid_block(decoder.conv_in(latents)).to(STORE)
    for stage in decoder.up_blocks:
        for resnet in stage.resnets:
            x = _resnet(resnet, x, bands)
        for upsample in getattr(stage, "upsamplers", ()):
            x = bands.map(upsample, x, scale=2)
    norm = bands.norm(decoder.conv_norm_out, x)
    return bands.map(lambda band: decoder.conv_out(norm(band)), x)


def _resnet(block: nn.Module, x: Tensor, bands: "_Bands") -> Tensor:
    first = bands.norm(block.norm1, x)
    hidden = bands.map(lambda band: block.conv1(first(band)), x)
    second = bands.norm(block.norm2, hidden)

    def rest(own: Tensor, given: Tensor) -> Tensor:
        return block.conv2(second(own)) + (given if block.conv_shortcut is None else block.conv_shortcut(given))

    return bands.map(rest, hidden, x)


@dataclass(frozen=True)
class _Bands:
    """How a picture is gone through. device: where bands are computed. elements: of a band, its neighbours' rows aside."""

    device: torch.device
    elements: int

    def map(self, layer: Callable[..., Tensor], *whole: Tensor, scale: int = 1) -> Tensor:
        """What a layer makes of pictures [1, C, H, W] of one size: [1, C', scale*H, scale*W]. It sees one row more on each
        side than it makes; beyond the picture's edge there is none, and the layer does there what it does for a whole.
        """
        height, out = whole[0].shape[2], None
        for start, end in self._rows(whole):
            top, bottom = max(0, start - _SEEN), min(height, end + _SEEN)
            made = layer(*(x[:, :, top:bottom].to(self.device) for x in whole))
            made = made[:, :, scale * (start - top) : scale * (end - top)]
            if out is None:
                out = torch.empty(1, made.shape[1], scale * height, made.shape[3], dtype=made.dtype, device=STORE)
            out[:, :, scale * start : scale * end] = made
        return out

    def halve(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What a layer that halves a picture [1, C, H, W] makes of it: [1, C, H/2, W/2]. Of each pair of rows it makes one, and
        sees the row below, or the edge that it adds there itself."""
        pairs, out = max(1, self._height(x) // 2), []
        for start in range(0, x.shape[2], 2 * pairs):
            end = min(start + 2 * pairs, x.shape[2])
            out.append(layer(x[:, :, start : end + _SEEN].to(self.device)).to(STORE))
        return torch.cat(out, dim=2)

    def norm(self, layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        """A GroupNorm for bands of x [1, C, H, W], by x's mean and spread, and the activation after it."""
        groups, channels = layer.num_groups, x.shape[1]
        total, squares, count = (torch.zeros(groups, dtype=torch.float64) for _ in range(3))
        for start, end in self._rows([x]):
            values = x[:, :, start:end].to(self.device).reshape(groups, -1)
            spread, mean = (part.to(STORE, torch.float64) for part in torch.var_mean(values.float(), dim=1, correction=0))
            total += values.shape[1] * mean
            squares += values.shape[1] * (spread + mean.square())
            count += values.shape[1]
        mean = total / count
        deviation = (squares / count - mean.square() + layer.eps).sqrt()
        weight, bias = (part.to(STORE, torch.float64) for part in _affine(layer, channels, x.dtype, self.device))
        each = channels // groups
        factor = weight / deviation.repeat_interleave(each)
        shift = bias - mean.repeat_interleave(each) * factor
        factor, shift = (part.to(self.device, torch.float32).view(1, -1, 1, 1) for part in (factor, shift))
        return lambda band: F.silu(torch.addcmul(shift, band.float(), factor).to(band.dtype))

    def _rows(self, whole: Sequence[Tensor]) -> list[tuple[int, int]]:
        height, rows = whole[0].shape[2], self._height(*whole)
        return [(start, min(start + rows, height)) for start in range(0, height, rows)]

    def _height(self, *whole: Tensor) -> int:
        """Rows of a band, at least one."""
        return max(1, self.elements // (whole[0].shape[3] * max(x.shape[1] for x in whole)))


def _affine(layer: nn.Module, channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A GroupNorm's weight and bias [C]. Where a host keeps them elsewhere and casts them for each use to what comes in, the
    layer is asked: of 1 and -1, which have mean 0 and variance 1, it makes bias + weight and bias - weight, but for its eps.
    """
    if plain_weight(layer, device, dtype) is not None:
        return layer.weight, layer.bias
    ones = torch.ones(1, channels, 1, 1, device=device)
    high, low = layer(torch.cat((ones, -ones), dim=2))[0, :, :, 0].unbind(1)
    return (high - low) / 2 * (1 + layer.eps) ** 0.5, (high + low) / 2
