"""Whether a model's parameters are the tensors of the mapped file themselves, or copies of them.

They cost no time and no memory of their own then, and are read as they are used. A file that is deleted, or replaced by
another of its name, stays readable for who has it mapped (on Windows neither is possible until the model is freed). One
that is overwritten or cut short in place does not, while a model computes with it; models that ComfyUI pages have the
same properties. ComfyUI's flag --disable-mmap has safetensors files read into memory instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import comfy.memory_management
import comfy.model_management
import torch

from ...omnigen2_core.checkpoints import as_parameters


def takes_over(load_device: torch.device) -> bool:
    """Whether a model that ComfyUI does not page takes the file's tensors, by the device that it computes on.

    On the CPU it does, where safetensors has mapped the file: what is written into such a tensor (hooks patch weights in
    place) stays in this process's memory. The mapping that ComfyUI makes beside a card that it pages for must not be
    written into. On a card without paging, ComfyUI pins the weights that stay behind, which wants memory of their own.
    """
    return comfy.model_management.is_device_cpu(load_device) and not comfy.memory_management.aimdo_enabled


def to_load(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], *, pages: bool, load_device: torch.device
) -> tuple[dict[str, torch.Tensor], bool]:
    """What to give `module.load_state_dict`: a state, and whether it is to be assigned.

    pages: whether ComfyUI pages the model's weights in and out (`ModelPatcher.is_dynamic`). It then wants the file's own
        tensors, in the file's dtypes. load_device: where the model computes.
    """
    if pages or not takes_over(load_device):
        return dict(state), pages
    return as_parameters(module, state), True
