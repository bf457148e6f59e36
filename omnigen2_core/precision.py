"""How a forward pass computes: plainly in one dtype, or in fp16 without leaving its range.

bf16 and fp32 never overflow in this model, and `Precision` adds nothing to their work. fp16 ends at 65504, which
activations of real checkpoints pass. `HalfPrecision` therefore keeps everything between matrix products in fp32 and
brings each row into range before a product; the factor returns afterwards in fp32, so nothing is clamped or lost.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

# The largest magnitude of a scaled row. Weights as large as fp16 holds and rows of ten thousand entries then still
# give sums within its range, while entries a hundred times smaller than the row's largest keep full precision.
ROW_LIMIT = 2.0**-6
AFFINE_LIMIT = 2.0**14

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def default_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch attention. q [B, H, S, hd]; k, v [B, KV, S, hd]; mask bool [B, 1, 1, S] (True = seen) or None."""
    return scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])


class Precision:
    """Computes in `dtype`, activations included.

    stream: dtype of the residual stream and of everything else outside matrix products.
    """

    def __init__(self, dtype: torch.dtype, attention: Attention | None = None):
        self.dtype = dtype
        self.stream = dtype
        self.attention = attention or default_attention

    def with_attention(self, attention: Attention) -> "Precision":
        return precision_for(self.dtype, attention)

    def norm(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What an RMSNorm layer makes of x [..., width]."""
        return layer(x)

    def linear(self, x: Tensor, *layers: nn.Module) -> list[Tensor]:
        """What each of the layers, which have no bias, makes of x [B, S, width]."""
        return [layer(x) for layer in layers]

    def affine(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What a layer with bias makes of x [B, S, width]."""
        return layer(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention as in `default_attention`."""
        return self.attention(q, k, v, mask)


class HalfPrecision(Precision):
    """fp16 matrix products and attention, fp32 stream; finite for every checkpoint whose weights fp16 can hold."""

    def __init__(self, attention: Attention | None = None):
        super().__init__(torch.float16, attention)
        self.stream = torch.float32

    def norm(self, x: Tensor, layer: nn.Module) -> Tensor:
        # A layer whose weight is fp16 takes a slow path for fp32 input. Its weight is what it makes of ones.
        weight = layer(torch.ones(x.shape[-1:], dtype=torch.float16, device=x.device))
        return rms_norm(x, x.shape[-1:], eps=layer.eps) * weight.float()

    def linear(self, x: Tensor, *layers: nn.Module) -> list[Tensor]:
        scale = _largest(x, dim=-1) / ROW_LIMIT
        scaled = (x / scale).to(torch.float16)
        return [layer(scaled).float() * scale for layer in layers]

    def affine(self, x: Tensor, layer: nn.Module) -> Tensor:
        # The bias is not scaled with the row, and a small row's product would drown in it. So rows stay as they are
        # where fp16 holds them and their products; a row of zeros gives the bias, to be taken out while scaling back.
        largest = _largest(x, dim=-1)
        lightly, fully = (largest / AFFINE_LIMIT).clamp_min(1.0), largest / ROW_LIMIT
        stacked = torch.cat((x / lightly, x / fully, torch.zeros_like(x[:, :1])), dim=1)
        rows = x.shape[1]
        light, full, bias = layer(stacked.to(torch.float16)).float().split((rows, rows, 1), dim=1)
        return bias + torch.where(light.isfinite(), (light - bias) * lightly, (full - bias) * fully)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scale = _largest(v, dim=(1, 2, 3))
        out = self.attention(q.to(torch.float16), k.to(torch.float16), (v / scale).to(torch.float16), mask)
        return out.float() * scale


def _largest(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    return x.abs().amax(dim, keepdim=True).clamp_min(1e-20)


def precision_for(dtype: torch.dtype, attention: Attention | None = None) -> Precision:
    """The way to compute in `dtype` (fp32, bf16, fp16 or fp64) with the given attention, or PyTorch's for None."""
    return HalfPrecision(attention) if dtype is torch.float16 else Precision(dtype, attention)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 on a graphics card that computes in it, else fp32."""
    kind = torch.device(device).type
    has_bf16 = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": lambda: torch.backends.mps.is_macos_or_newer(14, 0),
    }.get(kind, lambda: False)
    return torch.bfloat16 if has_bf16() else torch.float32
