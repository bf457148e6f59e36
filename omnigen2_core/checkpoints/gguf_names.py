"""llama.cpp's names of a language model's weights, as GGUF files of Qwen2.5-VL carry them, and the published ones."""

import re
from collections.abc import Iterable

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# Tables that follow from the config.
_DERIVED = ("rope_freqs.weight",)


def published_names(names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> published name. Names that are not llama.cpp's stay; tables that follow from the config go."""
    names = list(names)
    if "token_embd.weight" not in names:
        return {name: name for name in names}
    return {name: _published(name) for name in names if name not in _DERIVED}


def _published(name: str) -> str:
    match = _LAYER.fullmatch(name)
    if match and match[2] in _IN_LAYER:
        return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
    return _WHOLE.get(name, name)
