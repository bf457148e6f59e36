"""Weights that stay packed in ComfyUI: GGUF and int8 files as a MODEL and a CLIP.

Each layer makes numbers of its weight on the device where it computes, each time. A patcher of ComfyUI's would put a
patched weight in place of the stored one, which for packed weights means the whole model in bf16; this one leaves the
weight packed and has the patches follow it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import LazyCastingParam, LowVramPatch, ModelPatcher, get_key_weight

from ...omnigen2_core.errors import CheckpointError
from ...omnigen2_core.quantised import PackedTensor, packed_operations


def host_operations() -> SimpleNamespace:
    """ComfyUI's layers that cast on use, with such as take packed weights among them."""
    return packed_operations(comfy.ops.manual_cast, on_use=comfy.ops.run_every_op)


def refuse_fp8(dtype: str, source: str) -> None:
    """Raise CheckpointError where fp8 is asked for of weights that have been made smaller already."""
    if dtype == "fp8_e4m3fn":
        raise CheckpointError(
            f"{source} was made smaller already, and its weights stay as they are stored; choose auto, or bf16, fp16 or "
            "fp32 to compute in"
        )


class _Backup(NamedTuple):
    weight: torch.Tensor
    inplace_update: bool


class PackedModelPatcher(ModelPatcher):
    """ComfyUI's patcher for models whose weights move as a whole, with patches that follow packed weights.

    It adds no attributes, so a patcher that ComfyUI made becomes one by changing its class.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # The other mode keeps patched weights of some keys and forgets the rest.
        self.hook_mode = comfy.hooks.EnumHookMode.MinVram

    def patch_weight_to_device(
        self, key, device_to=None, inplace_update=False, return_weight=False, force_cast=False
    ) -> torch.Tensor | None:
        """As ComfyUI's. `return_weight` gives the patched numbers of a packed weight."""
        weight = get_key_weight(self.model, key)[0]
        if not isinstance(weight, PackedTensor):
            return super().patch_weight_to_device(key, device_to, inplace_update, return_weight, force_cast)
        if return_weight:
            return self._numbers(key, weight, device_to)
        if key not in self.patches:
            return weight
        self.backup.setdefault(key, _Backup(weight, False))
        comfy.utils.set_attr_param(self.model, key, weight.followed_by(_patch(key, self.patches, device_to)))
        return None

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights, memory_counter) -> None:
        """As ComfyUI's: patches that come and go within a run."""
        weight = get_key_weight(self.model, key)[0]
        if key not in combined_patches or not isinstance(weight, PackedTensor):
            super().patch_hook_weight_to_device(hooks, combined_patches, key, original_weights, memory_counter)
            return
        before, _ = self.hook_backup.setdefault(key, (weight, weight.device))
        patched = before.to(weight.device).followed_by(_patch(key, combined_patches, weight.device))
        comfy.utils.set_attr_param(self.model, key, patched)

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        """As ComfyUI's, which would write into the weights."""
        for key, (before, _) in list(self.hook_backup.items()):
            if isinstance(before, PackedTensor) and (not whitelist_keys_set or key in whitelist_keys_set):
                device = get_key_weight(self.model, key)[0].device
                comfy.utils.set_attr_param(self.model, key, before.to(device))
                del self.hook_backup[key]
        super().unpatch_hooks(whitelist_keys_set)

    def model_state_dict_for_saving(self, model=None, prefix="") -> dict[str, torch.Tensor]:
        """As ComfyUI's, with numbers for packed weights: what is saved is a file like that before it was packed."""
        state = (model or self.model).state_dict()
        out = {}
        for name, tensor in state.items():
            key = prefix + name
            if isinstance(tensor, PackedTensor):
                tensor = torch.empty(tensor.shape, dtype=_floating_dtype(self.model), device="meta")
            elif key not in self.patches or key in self.backup:
                out[name] = tensor
                continue
            out[name] = LazyCastingParam(self, key, tensor)
        return out

    def _numbers(self, key: str, weight: PackedTensor, device: torch.device | None) -> torch.Tensor:
        stored = self.backup[key].weight if key in self.backup else weight
        numbers = stored.to(device or weight.device).numbers()
        if key in self.patches:
            numbers = comfy.lora.calculate_weight(self.patches[key], numbers, key)
        return numbers.to(_floating_dtype(self.model))


def _patch(key: str, patches: dict, device: torch.device | None) -> LowVramPatch:
    """What ComfyUI applies to weights that it brings in piece by piece; its own tensors wait on the device."""
    patch = LowVramPatch(key, patches)
    if device is not None and not comfy.model_management.is_device_cpu(device):
        room = torch.empty(patch.memory_required(), dtype=torch.uint8, device=device)
        patch.prepare(room, None, copy=True, commit=True)
    return patch


def _floating_dtype(model: torch.nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
