"""Qwen2.5-VL as ComfyUI's CLIP: native encoding, memory management, storage formats and text generation.

ComfyUI's own OmniGen2 encoder reads text only. This one sits in the same object that core's does (`comfy.sd.CLIP`),
answers CLIP Text Encode with the same tokens, and can look at images. What it adds is on the encoder and the
tokenizer, which every clone of a CLIP shares, because `CLIP.clone` knows no subclasses.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Mapping, Sequence

import torch
from PIL import Image

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
from comfy.sd1_clip import ClipTokenWeightEncoder
from comfy.text_encoders.llama import BaseGenerate

from ...omnigen2_core.checkpoints import dequantise, pack_int8, require_vision
from ...omnigen2_core.checkpoints.tensors import floating
from ...omnigen2_core.errors import PromptError
from ...omnigen2_core.mllm import (
    build_mllm,
    encode_text,
    encode_with_images,
    generate_tokens,
    load_mllm_state_dict,
    to_early_name,
)
from ...omnigen2_core.quantised import holds_packed
from ...omnigen2_core.vision import preprocess, smart_resize, token_counts, visual_tokens
from .model import LARGE_BYTES, with_fp8_scales
from .packed import PackedModelPatcher, host_operations, refuse_fp8
from .parts import Part
from .taking_over import to_load
from .tokenizer import TOKENS, HostTokenizer

ENCODER_DTYPES = ("auto", "bf16", "fp32", "fp8_e4m3fn")
_PLAIN = {"bf16": torch.bfloat16, "fp32": torch.float32}


class OmniGen2Encoder(torch.nn.Module, ClipTokenWeightEncoder):
    """What a CLIP calls `cond_stage_model`: tokens in, [1, L, D] fp32 and a mask [1, L] out.

    Tokens are core's form, `{"qwen25_3b": [[(id, weight), ...]]}`, where an image stands as
    `{"type": "image", "data": PIL image}` in the place of its `<|image_pad|>`.
    """

    def __init__(self, part: Part, tokenizer: HostTokenizer, compute_dtype: torch.dtype, device, dtype, model_options):
        super().__init__()
        self.part = part
        self.profile = part.profile
        self.tokenizer = tokenizer
        self.special_tokens = {"pad": tokenizer.special.pad}
        self.load_device = model_options["load_device"]
        self.can_assign_sd = False  # CLIP.load_sd says so
        self.execution_device: torch.device | None = None
        self.transformer = build_mllm(
            part.config,
            operations=model_options["custom_operations"],
            dtype=dtype,
            device=device,
            compute_dtype=compute_dtype,
            vision=part.info.has_vision,
        )
        self.requires_grad_(False)
        self.dtypes = {dtype}

    def set_clip_options(self, options: Mapping[str, Any]) -> None:
        """Core's settings for one call. Raises PromptError for another layer than the last, which OmniGen2 reads."""
        if options.get("layer") not in (None, -1):
            raise PromptError(
                f"CLIP Set Last Layer asks for layer {options['layer']}, but OmniGen2 reads the encoder's last "
                "layer; remove that node."
            )
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def load_sd(self, state_dict: Mapping[str, torch.Tensor]) -> tuple[list[str], list[str]]:
        """Called by `CLIP.load_sd`. Raises CheckpointError for weights that do not fit."""
        state_dict = {to_early_name(name): tensor for name, tensor in state_dict.items()}
        state_dict, assign = to_load(
            self.transformer, state_dict, pages=self.can_assign_sd, load_device=self.load_device
        )
        load_mllm_state_dict(self.transformer, state_dict, assign=assign)
        return [], []

    def encode_token_weights(self, tokens: Mapping[str, list]) -> tuple[torch.Tensor, None, dict[str, torch.Tensor]]:
        return super().encode_token_weights(tokens[TOKENS])

    @torch.no_grad()
    def encode(self, rows: list[list]) -> tuple[torch.Tensor, None, dict[str, torch.Tensor]]:
        """Called by core's weighting of tokens with one row per prompt, and one of padding where weights are in use."""
        ids, mask, pixels, grid = self._inputs(rows)
        if pixels is None:
            hidden = encode_text(self.transformer, ids, mask)
        else:
            hidden, mask = encode_with_images(self.transformer, ids, mask, pixels, grid)
        return hidden.float(), None, {"attention_mask": mask}

    def generate(
        self,
        tokens,
        do_sample=True,
        max_length=256,
        temperature=1.0,
        top_k=50,
        top_p=0.95,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=None,
        presence_penalty=0.0,
    ) -> list[int]:
        """The answer's token ids, for core's text generation. Cancels within a token."""
        prompt = self.tokenizer.with_assistant_turn([token for token, *_ in tokens[TOKENS][0]])
        ids, mask, pixels, grid = self._inputs([prompt])
        generator = torch.Generator().manual_seed(seed or 0)
        start = ids.shape[1]

        def sample(scores: torch.Tensor, so_far: torch.Tensor) -> torch.Tensor:
            # On the CPU, so that a seed gives the same words on every device.
            chosen = BaseGenerate().sample_token(
                scores.cpu(),
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                so_far[0, start:].tolist(),
                generator,
                do_sample=True,
                presence_penalty=presence_penalty,
            )
            return chosen[:, 0].to(ids.device)

        progress = comfy.utils.ProgressBar(max_length)

        def on_token(written: list[list[int]]) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update(1)

        return generate_tokens(
            self.transformer,
            ids,
            mask,
            pixels,
            grid,
            max_new_tokens=max_length,
            stop_ids=self.tokenizer.special.stop,
            on_token=on_token,
            sample=sample if do_sample and temperature > 0 else None,
        )[0]

    def memory_estimation_function(self, tokens: Mapping[str, list], device: torch.device | None = None) -> float:
        """Bytes that activations need beside the weights; asked by `CLIP.load_model`."""
        rows = tokens.get(TOKENS, ())
        return self.reading_memory(rows) + sum(self.looking_memory(picture) for picture in pictures_in_rows(rows))

    def reading_memory(self, rows: Sequence[list]) -> float:
        """Bytes for the text model's activations while it reads these rows of tokens, pictures among them, at once."""
        text = self.transformer.config.text
        elements = 8 * text["hidden_size"] + 3 * text["intermediate_size"]
        return float(sum(map(self.length_of, rows)) * elements * self._element_size)

    def looking_memory(self, picture: Image.Image) -> float:
        """Bytes for the vision tower's activations while it looks at one picture."""
        width, height = smart_resize(*picture.size, self.tokenizer.pixels)
        patches = width * height // self.tokenizer.pixels.patch_size**2
        # Its attention turns queries and keys in fp32, with copies of both, beside the pixels in two dtypes.
        return float(patches * 20 * self.transformer.config.vision["hidden_size"] * self._element_size)

    def length_of(self, row: list) -> int:
        """Tokens of a row, those that its pictures will become included."""
        pixels = self.tokenizer.pixels
        return sum(visual_tokens(*token["data"].size, pixels) if isinstance(token, Mapping) else 1 for token, *_ in row)

    @property
    def _element_size(self) -> int:
        return comfy.model_management.dtype_size(self.transformer.compute_dtype)

    def _inputs(self, rows: list[list]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Ids and mask [B, L], and pixels and grid where there are images, on the device that computes."""
        pictures = [token["data"] for row in rows for token in row if isinstance(token, Mapping)]
        pixels = grid = None
        counts: list[int] = []
        if pictures:
            require_vision(self.part.info)
            pixels, grid = preprocess(pictures, self.tokenizer.pixels)
            counts = token_counts(grid, self.transformer.config.merge_size)
        remaining = iter(counts)
        pad = self.special_tokens["pad"]
        image = self.transformer.config.image_token_id
        expanded = [
            [i for token in row for i in ([image] * next(remaining) if isinstance(token, Mapping) else [int(token)])]
            for row in rows
        ]
        width = max(len(row) for row in expanded)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in expanded], dtype=torch.long)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in expanded], dtype=torch.long)
        device = self.execution_device or next(self.transformer.parameters()).device
        moved = [None if value is None else value.to(device) for value in (ids, mask, pixels, grid)]
        return tuple(moved)


def pictures_in_rows(rows: Sequence[list]) -> list[Image.Image]:
    """The pictures among rows of tokens with their weights."""
    return [token["data"] for row in rows for token, *_ in row if isinstance(token, Mapping)]


def load_clip(part: Part, *, dtype: str = "auto", disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The encoder of `part` as a CLIP.

    dtype: "auto" keeps the file's storage and computes in bf16 where the device has it, else in fp32; "bf16" and
    "fp32" store and compute so; "fp8_e4m3fn" stores the large matrices in fp8 and computes as "auto" does. Packed
    weights stay packed under the first three.
    Raises CheckpointError for weights, config or tokenizer that do not belong together.
    """
    tokenizer = HostTokenizer.for_part(part)
    device = comfy.model_management.text_encoder_device()
    compute = _compute_dtype(dtype, device)
    weights, operations = _prepared(part, compute, device, dtype)
    packed = holds_packed(weights)
    storage = _storage_dtype(dtype, weights, compute)
    target = SimpleNamespace(
        clip=OmniGen2Encoder,
        tokenizer=lambda **_: tokenizer,
        params={"part": part, "tokenizer": tokenizer, "compute_dtype": compute},
    )
    clip = comfy.sd.CLIP(
        target,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        state_dict=[weights],
        model_options={"dtype": storage, "load_device": device, "custom_operations": operations},
        disable_dynamic=disable_dynamic or packed,
    )
    if packed:
        clip.patcher.__class__ = PackedModelPatcher
    clip.patcher.set_model_compute_dtype(compute)
    return clip


def _compute_dtype(choice: str, device: torch.device) -> torch.dtype:
    if choice in _PLAIN:
        return _PLAIN[choice]
    if comfy.model_management.text_encoder_dtype(device) is torch.float32:  # --fp32-text-enc
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


def _storage_dtype(choice: str, weights: Mapping[str, torch.Tensor], compute: torch.dtype) -> torch.dtype:
    """The dtype of what is not quantised: that of the computation, but large weights do not grow beyond their file."""
    if choice in _PLAIN:
        return _PLAIN[choice]
    plain = {name: tensor for name, tensor in weights.items() if floating(tensor)}
    stored = comfy.utils.weight_dtype(plain) or compute
    size = compute.itemsize * sum(tensor.numel() for tensor in plain.values())
    return stored if stored.itemsize < compute.itemsize and size > LARGE_BYTES else compute


def _prepared(
    part: Part, compute: torch.dtype, device: torch.device, dtype: str
) -> tuple[dict[str, torch.Tensor], Any]:
    """The weights in core's present form of quantisation, where they are quantised, and the layer classes for them."""
    weights, _ = comfy.utils.convert_old_quants(part.weights(), metadata=dict(part.metadata))
    weights = pack_int8(weights, part.source)
    if holds_packed(weights):
        refuse_fp8(dtype, part.source)
        return weights, host_operations()
    quantise = dtype == "fp8_e4m3fn" or comfy.model_management.text_encoder_dtype(device) is torch.float8_e4m3fn
    weights = with_fp8_scales(weights, quantise=quantise, source=part.source)
    quantisation = comfy.utils.detect_layer_quantization(weights, "")
    if quantisation is None:
        return weights, comfy.ops.manual_cast
    if not comfy.model_management.supports_cast(device, torch.float8_e4m3fn):
        return dequantise(weights, compute, part.source), comfy.ops.manual_cast
    return weights, comfy.ops.mixed_precision_ops(quantisation, compute, full_precision_mm=True)
