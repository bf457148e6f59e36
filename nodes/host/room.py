"""Room on the device for the keys and values that a run keeps."""

from __future__ import annotations

import math
from typing import Mapping, Sequence

from ...omnigen2_core.precision import precision_for
from ...omnigen2_core.transformer import OmniGen2Config
from .conditioning import REFERENCES
from .run import RUN_KEY


def prepare_with_room(executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
    """PREPARE_SAMPLING wrapper: what the run keeps counts as further pictures, for which ComfyUI makes room."""
    state = (model_options or {}).get("transformer_options", {}).get(RUN_KEY)
    if state is not None and state.run.make_context is not None:
        inner = model.model
        kept = kept_bytes(inner.diffusion_model.config, noise_shape[0], conds, inner.get_dtype_inference())
        pictures = math.ceil(kept / inner.memory_required([1, *noise_shape[1:]]))
        noise_shape = [noise_shape[0] + pictures, *noise_shape[1:]]
    return executor(model, noise_shape, conds, *args, model_options=model_options, **kwargs)


def kept_bytes(config: OmniGen2Config, batch: int, conds: Mapping[str, Sequence[dict]], dtype) -> int:
    """Size of the keys and values of all texts and references, of every layer."""
    tokens = 0
    for entry in (entry for entries in conds.values() for entry in entries):
        text = entry.get("cross_attn")
        pixels = sum(math.prod(latent.shape[-2:]) for latent in entry.get(REFERENCES) or ())
        tokens += (0 if text is None else text.shape[1]) + pixels // config.patch_size**2
    width = config.hidden_size // config.num_attention_heads * config.num_kv_heads
    return batch * tokens * 2 * width * config.num_layers * precision_for(dtype).stream.itemsize
