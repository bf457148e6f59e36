"""Compiled parts of the transformer in ComfyUI: where a MODEL carries them, and what they do not go together with."""

from __future__ import annotations

import logging
from typing import Any, Mapping

from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS

from ...omnigen2_core.compiled import CompiledParts
from ...omnigen2_core.errors import OmniGen2Error

# Entry of a MODEL's transformer options.
COMPILED_KEY = "omnigen2_compiled"


def refuse_torch_compile(model_options: Mapping[str, Any]) -> None:
    """Raises OmniGen2Error for a MODEL that TorchCompileModel, or a node like it, compiles as a whole."""
    if TORCH_COMPILE_KWARGS in model_options:
        raise OmniGen2Error(
            "TorchCompileModel and OmniGen2 Compile are both on this MODEL, and would compile the same layers twice; "
            "remove TorchCompileModel."
        )


class Compiling:
    """One sampling run on a MODEL with compiled parts, for the log."""

    def __init__(self, model_options: Mapping[str, Any]):
        """Raises OmniGen2Error where another node compiles the same."""
        self._parts: CompiledParts | None = model_options["transformer_options"].get(COMPILED_KEY)
        if self._parts is not None:
            refuse_torch_compile(model_options)
            self._before = self._parts.skipped

    def report(self) -> None:
        """Says in the log, once, what was not compiled."""
        if self._parts is not None and self._parts.skipped > self._before:
            logging.info(
                "OmniGen2 Compile: parts of layers were computed uncompiled %d times, because their weights are packed or fp8, or "
                "are moved, cast or changed for each use (loaded in part).", self._parts.skipped - self._before,
            )
