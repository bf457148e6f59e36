"""Parts of the transformer's blocks as compiled graphs.

What is compiled lies between two attentions: norms, projections, rotation and gates. The attention itself, which is a
kernel of its own and the host's to choose, and what caches do with keys and values stay outside; so do positions,
masks, and the run. Blocks of one class share their graphs, whatever their number: PyTorch keeps graphs by the code that
they were made of, and weights are inputs to them. Lengths are free, so pictures, prompts and references of other sizes
need no new graph. One is made for each of: whether a batch has one picture or more, whether all tokens or the image's
alone leave the last layer, dtype, and width of the model.
"""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import CompileError
from .inference import plain_weight
from .precision import Precision

GRAPHS = 64
"""Graphs that one part may have before PyTorch computes it uncompiled; its own limit is 8, for all models together."""

_WITHOUT = "do without compiling (on the canvas: remove OmniGen2 Compile)."
_INSTALL_CPP = (
    "install one (Linux: the package g++; macOS: xcode-select --install; Windows: Build Tools for Visual Studio with "
    "C++, then start ComfyUI from their x64 command prompt)"
)


class CompiledParts:
    """Computes parts of blocks by compiled graphs; for any number of models and runs.

    A block whose weights are packed, or moved, cast or changed for each use, is computed as it stands: a graph would
    take them for constants of its own, or break at each of them.

    backend: as torch.compile takes it. skipped: how many parts were computed as they stand.
    """

    def __init__(self, backend: str | Callable = "inductor"):
        self.skipped = 0
        self._backend = backend
        self._graphs: dict[Callable, Callable] = {}

    def __call__(self, function: Callable, block: nn.Module, inputs: Sequence[Any], precision: Precision) -> Any:
        """function(block, *inputs, precision). inputs: the first is a tensor on the device that computes.

        Raises CompileError if there is no graph to be had.
        """
        if not _is_plain(block, inputs[0].device, precision.dtype):
            self.skipped += 1
            return function(block, *inputs, precision)
        if function not in self._graphs:
            self._graphs[function] = _compile(function, self._backend)
        try:
            return self._graphs[function](block, *inputs, precision.traced())
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            raise CompileError(
                f"PyTorch cannot compile the model on this machine ({cause}); update PyTorch, or {_WITHOUT}"
            ) from error


def require_compiler(device: torch.device) -> None:
    """Raises CompileError if it is certain that nothing can be compiled for this device; takes a moment, not minutes."""
    if device.type == "cpu":
        _require_cpp()
    elif device.type in ("cuda", "xpu"):
        _require_triton(device)


def _require_cpp() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise CompileError(
            f"Compiling for the CPU takes a C++ compiler, and none was found; {_INSTALL_CPP}, or {_WITHOUT}"
        ) from error
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise CompileError(
            f"Compiling for the CPU takes Python's own headers, and {headers} has no Python.h; install them (Linux: the "
            f"package python3-dev; Windows: run ComfyUI with a Python from python.org), or {_WITHOUT}"
        )


def _require_triton(device: torch.device) -> None:
    from torch.utils._triton import has_triton, has_triton_package

    if not has_triton_package():
        raise CompileError(
            "Compiling for a graphics card takes the Python package triton, which is not there; install it with ComfyUI's "
            f"Python (Linux: python -m pip install triton; Windows: python -m pip install triton-windows), or {_WITHOUT}"
        )
    if not has_triton():
        raise CompileError(
            f"The package triton cannot compile for this card ({device}), which is too old for it; {_WITHOUT}"
        )


def _compile(function: Callable, backend: str | Callable) -> Callable:
    limit = {"recompile_limit": GRAPHS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    return torch.compile(function, backend=backend, dynamic=True, **limit)


def _is_plain(block: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    layers = (layer for layer in block.modules() if hasattr(layer, "weight"))
    return all(plain_weight(layer, device, dtype) is not None for layer in layers)
