"""How a forward pass computes: plainly in one dtype, or in fp16 without leaving its range.

bf16 and fp32 never overflow in this model, and `Precision` adds nothing to their work. fp16 ends at 65504, which
activations of real checkpoints pass. `HalfPrecision` therefore keeps everything between matrix products in fp32 and
brings each row into range before a product; the factor returns afterwards in fp32, so nothing is clamped or lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from .rope import Rotation, rotate

if TYPE_CHECKING:
    from .compiled import CompiledParts

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
    compiled: what computes the parts of blocks, None for the code as it stands.
    """

    compiled: CompiledParts | None = None

    def __init__(self, dtype: torch.dtype, attention: Attention | None = None):
        self.dtype = dtype
        self.stream = dtype
        self.attention = attention or default_attention

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

    def part(self, function: Callable, block: nn.Module, *inputs: Any) -> Any:
        """function(block, *inputs, precision): a part of a block between two attentions."""
        if self.compiled is None:
            return function(block, *inputs, self)
        return self.compiled(function, block, inputs, self)

    def traced(self) -> Precision:
        """How a compiled graph computes the same: nothing is written into, and memory is the compiler's affair."""
        return self

    # What lies between matrix products. Tensors that are said to be used up may be written into.

    def scaled_norm(self, x: Tensor, layer: nn.Module, scale: Tensor | None) -> Tensor:
        """An RMSNorm layer of x [B, S, width], times scale [B, 1, width] where there is one. The next call may write into
        what the last one gave.
        """
        normed = self.norm(x, layer)
        return normed if scale is None else normed * scale

    def add_normed(self, x: Tensor, branch: Tensor, layer: nn.Module, gate: Tensor | None) -> Tensor:
        """x plus an RMSNorm layer of `branch`, times gate [B, 1, width] where there is one. Uses `branch` up."""
        return x + self.scaled_norm(branch, layer, gate)

    def turned_heads(self, x: Tensor, layer: nn.Module, table: Rotation) -> Tensor:
        """Queries or keys [B, S, H, head_dim] through an RMSNorm layer and `rope.rotate`. Uses `x` up."""
        return rotate(self.norm(x, layer), table)

    def gated(self, x: Tensor, gate: nn.Module, value: nn.Module) -> Tensor:
        """silu(gate(x)) * value(x) of two layers without bias: [B, S, inner]. The next call may write into it."""
        gates, values = self.linear(x, gate, value)
        return silu(gates) * values


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


def precision_for(
    dtype: torch.dtype, attention: Attention | None = None, compiled: CompiledParts | None = None
) -> Precision:
    """The way to compute in `dtype` (fp32, bf16, fp16 or fp64) with the given attention, or PyTorch's for None.

    Where gradients may be wanted, and in graphs that are compiled, nothing is written into.
    """
    precision = _precision_for(dtype, attention)
    # Who compiles the whole model compiles the parts with it.
    precision.compiled = None if torch.compiler.is_compiling() else compiled
    return precision


def _precision_for(dtype: torch.dtype, attention: Attention | None) -> Precision:
    if dtype is torch.float16:
        return HalfPrecision(attention)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Precision(dtype, attention)
    from .inference import InferencePrecision

    return InferencePrecision(dtype, attention)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 on a graphics card that computes in it, else fp32."""
    kind = torch.device(device).type
    has_bf16 = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": lambda: torch.backends.mps.is_macos_or_newer(14, 0),
    }.get(kind, lambda: False)
    return torch.bfloat16 if has_bf16() else torch.float32
