"""The shape of a Qwen2.5-VL, read from the `config.json` of any transformers release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from .errors import CheckpointError

TEXT_DEFAULTS = {
    "vocab_size": None,
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
}
VISION_DEFAULTS = {
    "depth": None,
    "hidden_size": None,
    "intermediate_size": None,
    "num_heads": None,
    "out_hidden_size": None,
    "fullatt_block_indexes": None,
    "hidden_act": "silu",
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
}


@dataclass(frozen=True)
class MLLMConfig:
    """Arguments for transformers' text and vision configs, and the ids that the model itself needs."""

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    image_token_id: int
    tied: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "MLLMConfig":
        """Reads the flat form (4.51) and the nested one (`text_config`).

        Raises CheckpointError for another model's config.
        """
        model_type = config.get("model_type", "qwen2_5_vl")
        if model_type != "qwen2_5_vl":
            raise CheckpointError(
                f"The encoder's config.json says model_type {model_type!r}, but OmniGen2 needs 'qwen2_5_vl'. "
                "Use OmniGen2's mllm folder."
            )
        nested = config.get("text_config") or config
        text = _pick(nested, TEXT_DEFAULTS, "")
        text.update(_rope(nested))
        # A sliding window that the config does not use would still be applied by transformers 4.50.
        text.update(use_sliding_window=False, sliding_window=None, bos_token_id=None, eos_token_id=None)
        vision = _pick(config.get("vision_config") or {}, VISION_DEFAULTS, "vision_config.")
        tied = bool(config.get("tie_word_embeddings", nested.get("tie_word_embeddings", True)))
        return cls(text, vision, int(config.get("image_token_id", 151655)), tied)

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the text model."""
        return self.text["hidden_size"] // self.text["num_attention_heads"]

    @property
    def vision_head_dim(self) -> int:
        """Width of one attention head of the vision tower."""
        return self.vision["hidden_size"] // self.vision["num_heads"]

    @property
    def merge_size(self) -> int:
        """Patches along each side of a visual token."""
        return self.vision["spatial_merge_size"]


def _pick(source: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values = {name: source[name] if source.get(name) is not None else default for name, default in defaults.items()}
    missing = [prefix + name for name, value in values.items() if value is None]
    if missing:
        raise CheckpointError(
            f"The encoder's config.json lacks {', '.join(missing)}. Take the file from the model's own mllm folder."
        )
    return values


def _rope(source: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings in the form that every transformers release accepts."""
    settings = source.get("rope_parameters") or source.get("rope_scaling") or {}
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise CheckpointError(
            f"The encoder's config.json asks for {kind!r} position scaling, which OmniGen2's encoder does not use. "
            "Use OmniGen2's mllm folder."
        )
    theta = settings.get("rope_theta", source.get("rope_theta", 1000000.0))
    section = list(settings.get("mrope_section", (16, 24, 24)))
    return {"rope_theta": theta, "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": section}}
