"""Layers that compute with packed weights: an `operations` namespace over another one, torch.nn's or a host's.

A weight becomes numbers on the device and in the dtype of what enters the layer, for this one use. Layers whose weight
is not packed are those of the namespace below, in every respect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tensor import PackedTensor, holds_packed

_OTHERS = ("RMSNorm", "LayerNorm", "GroupNorm", "Conv1d", "Conv2d", "Conv3d")


class _TakesPacked:
    """What the layers share: built without memory, loaded by taking tensors over, moved without a cast.

    is_packed: whether the weight that was loaded is packed. What stands in its place later, patched or on another device,
        is of the same kind.
    """

    is_packed = False

    def _load_from_state_dict(self, state, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        own = [name for name, parameter in self._parameters.items() if parameter is not None]
        unexpected.extend(key for key in state if key.startswith(prefix) and key[len(prefix) :] not in own and strict)
        for name in own:
            tensor, parameter = state.get(prefix + name), self._parameters[name]
            if tensor is None:
                missing.append(prefix + name)
            elif tensor.shape != parameter.shape:
                errors.append(
                    f"size mismatch for {prefix}{name}: {list(tensor.shape)} where {list(parameter.shape)} is needed"
                )
            else:
                packed = isinstance(tensor, PackedTensor)
                if name == "weight":
                    self.is_packed = packed
                tensor = tensor if packed else tensor.to(parameter.dtype)
                self._parameters[name] = nn.Parameter(tensor, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        # nn.Module's own writes into the parameter's data, which a packed tensor refuses.
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = nn.Parameter(fn(parameter), requires_grad=False)
        return self


def packed_operations(base: Any = nn, *, on_use: Callable[[], None] | None = None) -> SimpleNamespace:
    """The layer classes of `base`, with a Linear and an Embedding that take packed weights.

    base: torch.nn, or a host's namespace, whose layers may carry functions that change a weight after it is cast
        (`weight_function`, `bias_function`). on_use: called before a packed layer computes; a host stops a run there.
    """

    def numbers(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        if on_use is not None:
            on_use()
        weight = layer.weight.to(device).numbers(dtype)
        for change in getattr(layer, "weight_function", ()):
            weight = change(weight)
        return weight

    class Linear(_TakesPacked, base.Linear):
        def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None):
            super().__init__(in_features, out_features, bias=bias, device="meta", dtype=dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self._forward_packed(x) if self.is_packed else super().forward(x)

        # A compiled graph would take a weight and what changes it for constants of its own.
        @torch.compiler.disable
        def _forward_packed(self, x: Tensor) -> Tensor:
            bias = self.bias
            if bias is not None:
                changes = getattr(self, "bias_function", ())
                # A change may write into what it is given.
                bias = bias.to(x.device, x.dtype, copy=bool(changes))
                for change in changes:
                    bias = change(bias)
            return F.linear(x, numbers(self, x.device, x.dtype), bias)

    class Embedding(_TakesPacked, base.Embedding):
        def __init__(self, num_embeddings: int, embedding_dim: int, device=None, dtype=None):
            super().__init__(num_embeddings, embedding_dim, device="meta", dtype=dtype)

        def forward(self, ids: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
            """Rows [*ids, width] in `out_dtype`, by default fp32."""
            if self.is_packed:
                return self._forward_packed(ids, out_dtype or torch.float32)
            return super().forward(ids) if out_dtype is None else super().forward(ids, out_dtype=out_dtype)

        @torch.compiler.disable
        def _forward_packed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
            if getattr(self, "weight_function", ()):
                return F.embedding(ids, numbers(self, ids.device, dtype))
            # Few rows are cheaper to look up where the table lies than the table is to move.
            return self.weight.rows(ids.to(self.weight.device), dtype).to(ids.device)

    others = {name: getattr(base, name) for name in _OTHERS if hasattr(base, name)}
    return SimpleNamespace(Linear=Linear, Embedding=Embedding, **others)


def operations_for(state: Mapping[str, Tensor]) -> Any:
    """The layers that take these weights: torch.nn's, or such as take packed ones where there are any."""
    return packed_operations(nn) if holds_packed(state) else nn


def unpack_elsewhere(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the numbers, in the parameter's dtype, of every packed tensor that no layer of `module` takes packed."""
    takes = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, _TakesPacked)}
    parameters = dict(module.named_parameters())
    out = dict(state)
    for name, tensor in state.items():
        if isinstance(tensor, PackedTensor) and name not in takes:
            out[name] = tensor.numbers(parameters[name].dtype if name in parameters else torch.float32)
    return out
