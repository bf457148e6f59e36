"""Decoding a picture in bands of rows, where its activations do not fit the device: the same picture, to rounding.

Tiles that are decoded by themselves and blended show seams, since each is normalised by its own mean and spread and its
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
from .vae import AutoencoderKL

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
        _, _, height, width = whole[0].shape
        rows = max(1, self.elements // (width * max(x.shape[1] for x in whole)))
        return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def _affine(layer: nn.Module, channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A GroupNorm's weight and bias [C]. Where a host keeps them elsewhere and casts them for each use to what comes in, the
    layer is asked: of 1 and -1, which have mean 0 and variance 1, it makes bias + weight and bias - weight, but for its eps.
    """
    if plain_weight(layer, device, dtype) is not None:
        return layer.weight, layer.bias
    ones = torch.ones(1, channels, 1, 1, device=device)
    high, low = layer(torch.cat((ones, -ones), dim=2))[0, :, :, 0].unbind(1)
    return (high - low) / 2 * (1 + layer.eps) ** 0.5, (high + low) / 2
