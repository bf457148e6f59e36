"""What is this file? Answered from the names and shapes in its header; weights are never read."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import CheckpointError
from .header import Header, read_header

CONFIG_KEY = "omnigen2_config"
"""Metadata entry of a single file: the JSON of the config.json that its part would have in a folder."""
PROFILE_KEY = "omnigen2_profile"
"""Metadata entry of a single file: the JSON of the omnigen2.json that its folder would have."""


class FileKind(Enum):
    """The files this package loads, and everything else."""

    DIT = "diffusion model"
    ENCODER = "encoder"
    VAE = "VAE"
    LORA = "LoRA"
    OTHER = "other"


@dataclass(frozen=True)
class FileInfo:
    """What a file is. `what` completes "this file is ..."; `prefix` stands before every tensor name of the part."""

    path: Path | None
    kind: FileKind
    what: str
    prefix: str
    header: Header

    @property
    def name(self) -> str:
        return self.path.name if self.path else "this file"

    @property
    def dtype(self) -> str:
        """Storage dtype that holds most of the bytes (`bf16`, `fp16`, `fp8_e4m3fn`, ...)."""
        return self.header.dtype

    @property
    def has_vision(self) -> bool:
        """Whether an encoder file holds the vision tower (`visual.*`), which seeing images needs."""
        return any(name.startswith(_VISION) for name in self.names())

    @property
    def scaled(self) -> bool:
        """Whether fp8 weights come with scales, under either of the names in use."""
        return any(name.endswith((".scale_weight", ".weight_scale")) for name in self.header.tensors)

    def embedded(self, key: str) -> dict | None:
        """The JSON object in the metadata entry `key`, None if there is no such entry."""
        text = self.header.metadata.get(key)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError as error:
            raise CheckpointError(
                f"{key} in the metadata of {self.name} is not valid JSON ({error}); write the file again"
            ) from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{key} in the metadata of {self.name} is not a JSON object; write the file again")
        return value

    def names(self) -> list[str]:
        """Tensor names of this part, without the prefix."""
        return [name[len(self.prefix) :] for name in self.header.tensors if name.startswith(self.prefix)]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of the tensor `name` (without the prefix), None if there is none."""
        return self.header.shape(self.prefix + name)


_VISION = ("visual.", "model.visual.")
_DIT_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
_VAE_PREFIXES = ("", "vae.", "first_stage_model.")
_ENCODER_PREFIXES = ("", "text_encoders.qwen25_3b.transformer.", "mllm.", "text_encoder.")

_DIT_MARKS = ("time_caption_embed.timestep_embedder.linear_1.bias", "ref_image_patch_embedder.weight")
_BOOGU = "a Boogu-Image transformer (a derivative of OmniGen2 with two streams)"
_LORA_NAME = re.compile(
    r"\.lora_[AB](\.|$)|[._]lora[._](up|down)\b|\.lora_(up|down)\.|lora_linear_layer"
    r"|\.hada_w1|\.lokr_w1|\.lora_magnitude_vector|\.dora_scale"
)

# Foreign diffusion models: every name of a row must be there. More particular rows come first.
_FOREIGN_DIFFUSION = (
    (("txt_norm.weight", "transformer_blocks.0.attn.add_q_proj.weight"), "a Qwen-Image transformer"),
    (("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"), "a FLUX transformer"),
    (("single_transformer_blocks.0.attn.to_q.weight", "context_embedder.weight"), "a FLUX transformer"),
    (("double_blocks.0.img_attn.qkv.weight",), "a transformer of the FLUX family"),
    (("double_blocks.0.img_attn_qkv.weight",), "a HunyuanVideo transformer"),
    (("joint_blocks.0.context_block.attn.qkv.weight",), "a Stable Diffusion 3 transformer"),
    (("cap_embedder.1.weight", "noise_refiner.0.attention.qkv.weight"), "a Lumina 2 transformer"),
    (("time_caption_embed.caption_embedder.1.weight", "layers.0.attn.to_q.weight"), "a Lumina 2 transformer"),
    (("llm.layers.0.self_attn.qkv_proj.weight",), "an OmniGen (first version) model"),
    (("patch_embedding.weight", "blocks.0.cross_attn.q.weight"), "a Wan video transformer"),
    (("input_blocks.0.0.weight",), "a Stable Diffusion UNet"),
    (("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "a Stable Diffusion UNet"),
)
_FOREIGN_ENCODERS = (
    (("encoder.block.0.layer.0.SelfAttention.q.weight",), "a T5 text encoder"),
    (("text_model.encoder.layers.0.self_attn.q_proj.weight",), "a CLIP text encoder"),
    (("vision_model.encoder.layers.0.self_attn.q_proj.weight",), "a CLIP vision model"),
    (("v.blk.0.attn_q.weight",), "only the vision part of an encoder (mmproj)"),
    (("enc.blk.0.attn_q.weight",), "a T5 text encoder"),
)
_FOREIGN_VAES = (
    (("decoder.middle.0.residual.0.gamma",), "a video VAE of the Wan and Qwen-Image kind"),
    (("decoder.mid_block.attentions.0.norm.gamma",), "a video VAE of the Wan and Qwen-Image kind"),
)


def identify(path: str | Path) -> FileInfo:
    """Say what the safetensors or GGUF file at `path` is, from its header alone.

    Raises `CheckpointError` in one sentence if it is no readable file of these (pickled, truncated, a web page, ...).
    """
    path = Path(path)
    return classify(read_header(path), path)


def classify(header: Header, path: Path | None = None, *, has_config: bool = False) -> FileInfo:
    """Say what the tensors of `header` are.

    `has_config`: a config.json stands beside the weights, so an encoder or VAE of a size other than the published one
    is still ours.
    """
    has_config = has_config or CONFIG_KEY in header.metadata
    for rule in (_lora, _diffusion_model, _encoder, _vae):
        found = rule(header, has_config)
        if found:
            kind, what, prefix = found
            return FileInfo(path, kind, what, prefix, header)
    return FileInfo(path, FileKind.OTHER, _unknown(header), "", header)


def _lora(header: Header, has_config: bool) -> tuple[FileKind, str, str] | None:
    if any(_LORA_NAME.search(name) for name in header.tensors):
        return FileKind.LORA, "a LoRA", ""
    return None


def _diffusion_model(header: Header, has_config: bool) -> tuple[FileKind, str, str] | None:
    for prefix in _DIT_PREFIXES:
        if any(name.startswith(prefix + "double_stream_layers.") for name in header.tensors):
            return FileKind.OTHER, _BOOGU, prefix
        if all(prefix + mark in header.tensors for mark in _DIT_MARKS):
            return FileKind.DIT, "the OmniGen2 diffusion model", prefix
        what = _foreign(header, prefix, _FOREIGN_DIFFUSION)
        if what:
            return FileKind.OTHER, what, prefix
    return None


def _encoder(header: Header, has_config: bool) -> tuple[FileKind, str, str] | None:
    for prefix in _ENCODER_PREFIXES:
        for body in ("model.", "model.language_model."):
            weight = header.shape(f"{prefix}{body}layers.0.self_attn.k_proj.weight")
            if weight is None:
                continue
            if prefix + body + "layers.0.self_attn.q_norm.weight" in header.tensors:
                return FileKind.OTHER, "a Qwen3 text encoder", prefix
            bias = header.shape(f"{prefix}{body}layers.0.self_attn.k_proj.bias")
            if bias is None:
                return FileKind.OTHER, "a language model of another family (its attention has no bias)", prefix
            if (bias[0], weight[-1]) == (512, 3584):
                return FileKind.OTHER, "the 7B Qwen2.5-VL encoder, as Qwen-Image uses it", prefix
            if has_config or (bias[0], weight[-1]) == (256, 2048):
                return FileKind.ENCODER, "the Qwen2.5-VL-3B encoder", prefix
            return FileKind.OTHER, f"a Qwen2.5 encoder of another size (hidden size {weight[-1]}, not 2048)", prefix
    what = _foreign(header, "", _FOREIGN_ENCODERS)
    if what:
        return FileKind.OTHER, what, ""
    if header.tensors and all(name.startswith(_VISION) for name in header.tensors):
        return FileKind.OTHER, "only the vision tower of an encoder", ""
    return None


def _vae(header: Header, has_config: bool) -> tuple[FileKind, str, str] | None:
    for prefix in _VAE_PREFIXES:
        what = _foreign(header, prefix, _FOREIGN_VAES)
        if what:
            return FileKind.OTHER, what, prefix
        conv_in = header.shape(prefix + "decoder.conv_in.weight")
        both_halves = conv_in is not None and prefix + "encoder.conv_in.weight" in header.tensors
        if conv_in is None:
            continue
        if len(conv_in) == 5:
            return FileKind.OTHER, "a video VAE", prefix
        if has_config or (both_halves and conv_in[1] == 16 and prefix + "quant_conv.weight" not in header.tensors):
            return FileKind.VAE, "the FLUX.1 VAE", prefix
        if not both_halves:
            return FileKind.OTHER, "only the decoder of a VAE", prefix
        return FileKind.OTHER, f"a VAE of another kind ({conv_in[1]} latent channels)", prefix
    return None


def _foreign(header: Header, prefix: str, table: Iterable[tuple[tuple[str, ...], str]]) -> str | None:
    for marks, what in table:
        if all(prefix + mark in header.tensors for mark in marks):
            return what
    return None


def _unknown(header: Header) -> str:
    if not header.tensors:
        return "a file without tensors"
    return f"a file of an unknown kind (its first tensor is {next(iter(header.tensors))})"
