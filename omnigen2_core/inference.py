"""The work between matrix products in few passes over memory, where no gradients are wanted.

In fp32 on a CPU that work is a tenth of a layer's time, all of it waiting for memory: PyTorch has no fused RMSNorm
there, and the system zeroes the fresh memory of a large tensor, which takes ten times as long as writing into memory
that is there. So sums are taken in one pass, factors that stand next to one another are multiplied before they meet
the tokens, tensors that nobody else sees are written into, and the largest of them stay from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from .precision import Attention, Precision
from .rope import Rotation


class InferencePrecision(Precision):
    """`Precision` to rounding, for one forward pass. Layers whose weight the host moves, casts or changes for each use, or
    that something else watches, are asked as they are.
    """

    def __init__(self, dtype: torch.dtype, attention: Attention | None = None):
        super().__init__(dtype, attention)
        self._rooms: dict[str, Tensor] = {}

    def traced(self) -> Precision:
        """See `Precision.traced`."""
        return Precision(self.dtype)

    def scaled_norm(self, x: Tensor, layer: nn.Module, scale: Tensor | None) -> Tensor:
        """See `Precision.scaled_norm`."""
        factor = _factor(layer, x, scale)
        if factor is None:
            return super().scaled_norm(x, layer, scale)
        if _has_no_fused_norm(x):
            # Read by one layer's projections and by nothing after them.
            room = self._room("normed", x.shape, x)
            return torch.mul(x, _inverse_rms(x, layer.eps), out=room).mul_(factor)
        return rms_norm(x, x.shape[-1:], factor.flatten(), layer.eps)

    def add_normed(self, x: Tensor, branch: Tensor, layer: nn.Module, gate: Tensor | None) -> Tensor:
        """See `Precision.add_normed`."""
        factor = _factor(layer, branch, gate)
        if factor is None or not _has_no_fused_norm(branch):
            return x + self.scaled_norm(branch, layer, gate)
        branch.mul_(_inverse_rms(branch, layer.eps))
        return torch.addcmul(x, branch, factor, out=branch)

    def turned_heads(self, x: Tensor, layer: nn.Module, table: Rotation) -> Tensor:
        """See `Precision.turned_heads`."""
        weight = _factor(layer, x, None)
        if weight is None or not _has_no_fused_norm(x):
            return super().turned_heads(x, layer, table)
        x.mul_(_inverse_rms(x, layer.eps)).mul_(weight)
        # A pair of dims is a complex number, and the rotation its product with another: one pass over the heads. Only
        # on a CPU, see above: MPS has no complex numbers.
        torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(torch.complex(*table).unsqueeze(2))
        return x

    def gated(self, x: Tensor, gate: nn.Module, value: nn.Module) -> Tensor:
        """See `Precision.gated`."""
        weights = _weight(gate, x), _weight(value, x)
        if _has_no_fused_norm(x) and all(weight is not None for weight in weights):
            gates, values = (self._product(name, x, weight) for name, weight in zip(("gates", "values"), weights))
        else:
            gates, values = self.linear(x, gate, value)
        return silu(gates, inplace=True).mul_(values)

    def _product(self, name: str, x: Tensor, weight: Tensor) -> Tensor:
        """x [B, S, width] through a layer without bias, in memory that is kept under this name."""
        out = self._room(name, (*x.shape[:-1], len(weight)), x)
        torch.mm(x.flatten(0, -2), weight.T, out=out.view(-1, len(weight)))
        return out

    def _room(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory for a tensor of this shape, which what is in it now is not needed for any more."""
        size = math.prod(shape)
        if name not in self._rooms or self._rooms[name].numel() < size:
            self._rooms[name] = like.new_empty(size)
        return self._rooms[name][:size].view(shape)


def _has_no_fused_norm(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype is torch.float32


def _factor(layer: nn.Module, x: Tensor, scale: Tensor | None) -> Tensor | None:
    """An RMSNorm layer's weight, times `scale`, for all of x's tokens: [1, 1, width], [B, 1, width] or [width].

    None where the weight is not to be had as it lies, or where it would differ between samples and has to be flat.
    """
    weight = _weight(layer, x)
    if weight is None or scale is None:
        return weight
    return weight * scale if len(scale) == 1 or _has_no_fused_norm(x) else None


def _weight(layer: nn.Module, x: Tensor) -> Tensor | None:
    """A layer's weight where using it is all that calling the layer would do to x, else None."""
    return plain_weight(layer, x.device, x.dtype)


def plain_weight(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """A layer's weight where it lies on this device in this dtype and is all that the layer computes with, else None."""
    weight = getattr(layer, "weight", None)
    # A packed weight, or one in a host's own form, is no plain parameter.
    if type(weight) is not nn.Parameter or weight.device != device or weight.dtype != dtype:
        return None
    others = ("weight_function", "bias_function", "_forward_hooks", "_forward_pre_hooks")
    return None if "forward" in vars(layer) or any(getattr(layer, name, None) for name in others) else weight


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dim, which stays as one: [..., 1]."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
