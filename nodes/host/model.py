"""OmniGen2 as a native ComfyUI MODEL.

The model, its config and its conditioning contract are subclasses of ComfyUI's own OmniGen2, so that core samplers,
LoRA loading, offloading and model patches treat it as what it is; the transformer inside is omnigen2_core's.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Callable, Mapping

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP

from ...omnigen2_core.checkpoints import FP8_FORMAT, UNUSED_SCALES, WEIGHT_SCALES, dequantise, pack_int8, quantisation_note
from ...omnigen2_core.errors import CheckpointError
from ...omnigen2_core.profile import PUBLISHED, ModelProfile
from ...omnigen2_core.quantised import holds_packed, unpack_elsewhere
from ...omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer
from .conditioning import MASK, REFERENCES, check_references, check_text, pack_text
from .packed import PackedModelPatcher, host_operations, refuse_fp8
from .room import prepare_with_room
from .run import WRAPPER_KEY, add_run_wrappers
from .taking_over import to_load
from .transformer import HostTransformer

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
WEIGHT_DTYPES = ("auto", *DTYPES)
# In the order in which the automatic choice takes what the device can do.
SUPPORTED_DTYPES = [torch.bfloat16, torch.float16, torch.float32]

# What an evaluation in fp16 holds beside the weights, in ComfyUI's measure by the area of picture and references: everything
# outside matrix products is fp32 then. `dev.py bench memory` counts 2.6; the rest is for what a card's libraries take.
# ComfyUI has 1.95 for this architecture, where 0.95 are counted in bf16.
FP16_MEMORY_FACTOR = 3.5

# Weights above this size keep the file's dtype in memory even where the device computes in a wider one.
LARGE_BYTES = 1 << 30
FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max


class OmniGen2ModelConfig(comfy.supported_models.Omnigen2):
    """ComfyUI's OmniGen2 settings (latent format, fixed shift, memory factor) for a transformer of any size."""

    def __init__(self, config: OmniGen2Config, profile: ModelProfile = PUBLISHED):
        super().__init__({"image_model": "omnigen2", **asdict(config)})
        self.supported_inference_dtypes = SUPPORTED_DTYPES
        self.profile = profile

    def get_model(self, state_dict, prefix="", device=None):
        return OmniGen2Model(self, device=device)


class OmniGen2Model(comfy.model_base.Omnigen2):
    """The inside of our MODEL: conditioning in, denoised latents out.

    profile: what suits these weights (time shift, sizes, default guidance).
    """

    def __init__(self, model_config: OmniGen2ModelConfig, device=None):
        # Omnigen2.__init__ would build ComfyUI's own transformer.
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostTransformer
        )
        self.memory_usage_factor_conds = ("ref_latents",)
        self.profile = model_config.profile

    def extra_conds(self, **kwargs):
        """The native contract, made exact: text packed to its real tokens, a mask only where a batch needs one."""
        unet_config = self.model_config.unet_config
        text = kwargs.get("cross_attn")
        check_text(text, unet_config["text_feat_dim"])
        check_references(kwargs.get(REFERENCES) or [], unet_config["in_channels"], self.profile.max_references)
        text, mask = pack_text(text, kwargs.get(MASK))
        out = super().extra_conds(**{**kwargs, "cross_attn": text, MASK: None})
        if mask is not None:
            out[MASK] = comfy.conds.CONDRegular(mask)
        return out

    def memory_required(self, input_shape, cond_shapes={}):
        """As ComfyUI's, in bytes; in fp16 more is held beside the weights than the size of its numbers says."""
        required = super().memory_required(input_shape, cond_shapes=cond_shapes)
        if self.get_dtype_inference() is torch.float16:
            return required * FP16_MEMORY_FACTOR / self.memory_usage_factor
        return required

    def process_timestep(self, timestep, **kwargs):
        """Sigma again, whatever multiplier a sampling patch such as ModelSamplingSD3 has brought."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)


def load_diffusion_model(
    state_dict: Mapping[str, torch.Tensor],
    config: OmniGen2Config,
    profile: ModelProfile = PUBLISHED,
    *,
    source: str = "this file",
    weight_dtype: str = "auto",
    metadata: Mapping[str, str] | None = None,
    reload: tuple[Callable, tuple] | None = None,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from a transformer's weights.

    Args:
        state_dict: Published parameter names; fp8 with or without scales, in any of the forms ComfyUI knows, or packed
            (GGUF), which stays so, as does int8.
        config, profile: Shape of the transformer, and what suits the weights.
        source: How messages name the weights.
        weight_dtype: One of WEIGHT_DTYPES. "auto" is bf16 where the device computes in it, else fp16 if ComfyUI uses
            that there, else fp32. "fp8_e4m3fn" stores the matrices in 8 bits, with a scale for each, and computes in
            the automatic dtype.
        metadata: The file's header entries, where ComfyUI notes quantised layers.
        reload: (function, arguments) that loads the same model again; the function must also accept
            `disable_dynamic`. ComfyUI needs it to compile the model, or to run it on several devices.
        disable_dynamic: ComfyUI asks for a patcher that does not page weights in and out.

    Raises CheckpointError if weights are missing, of another shape, or stored in a form that is not known here.
    """
    state_dict, _ = comfy.utils.convert_old_quants(dict(state_dict), "", metadata=dict(metadata or {}))
    state_dict = pack_int8(state_dict, source)
    check_weights(state_dict, config, source)
    load_device = comfy.model_management.get_torch_device()
    packed = holds_packed(state_dict)
    if packed:
        refuse_fp8(weight_dtype, source)
    else:
        state_dict = _in_host_form(state_dict, weight_dtype, load_device, source)

    model_config = OmniGen2ModelConfig(config, profile)
    model_config.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    model_config.custom_operations = host_operations() if packed else None
    offload_device = comfy.model_management.unet_offload_device()
    quantised = packed or model_config.quant_config is not None
    storage, compute = choose_dtypes(state_dict, weight_dtype, load_device, quantised=quantised)
    model_config.set_inference_dtype(storage, compute, device=load_device)

    model = model_config.get_model(state_dict)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher_class = PackedModelPatcher if packed else patcher_class
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    state_dict, assign = to_load(
        model.diffusion_model,
        unpack_elsewhere(model.diffusion_model, state_dict),
        pages=patcher.is_dynamic(),
        load_device=load_device,
    )
    if not packed and not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, assign=assign)
    if packed and not comfy.model_management.is_device_cpu(offload_device):
        # Layers for packed weights are nowhere until they have them.
        model.to(offload_device)
    patcher.cached_patcher_init = reload
    add_run_wrappers(patcher)
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, WRAPPER_KEY, prepare_with_room)
    return patcher


def _in_host_form(
    state_dict: Mapping[str, torch.Tensor], weight_dtype: str, device: torch.device, source: str
) -> dict[str, torch.Tensor]:
    """Weights that are not packed, in fp8 where they are stored so or are to be, in the form that the device can hold."""
    if weight_dtype == "auto" and _automatic_dtype(state_dict).itemsize == 1:
        # ComfyUI was started with a flag such as --fp8_e4m3fn-unet.
        weight_dtype = "fp8_e4m3fn"
    state_dict = with_fp8_scales(state_dict, quantise=weight_dtype == "fp8_e4m3fn", source=source)
    in_fp8 = {FP8, torch.float8_e5m2} & {tensor.dtype for tensor in state_dict.values()}
    if in_fp8 and not comfy.model_management.supports_cast(device, FP8):
        computes = comfy.model_management.unet_manual_cast(FP8, device, SUPPORTED_DTYPES)
        state_dict = dequantise(state_dict, computes, source)
    return state_dict


def choose_dtypes(
    state_dict: Mapping[str, torch.Tensor], weight_dtype: str, device: torch.device, *, quantised: bool
) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of the weights in memory, dtype of the computation or None if it is the same)."""
    chosen = DTYPES[weight_dtype] if weight_dtype in ("bf16", "fp16", "fp32") else None
    storage = chosen if quantised else chosen or _automatic_dtype(state_dict)
    compute = comfy.model_management.unet_manual_cast(storage, device, SUPPORTED_DTYPES)
    if quantised:
        # Everything but the quantised matrices is stored as it is computed.
        return compute or storage, compute or storage
    in_file = comfy.utils.weight_dtype(state_dict)
    size = sum(tensor.numel() for tensor in state_dict.values()) * storage.itemsize
    if in_file.itemsize < storage.itemsize and size > LARGE_BYTES:
        return in_file, compute or storage
    return storage, compute


def _automatic_dtype(state_dict: Mapping[str, torch.Tensor]) -> torch.dtype:
    return comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state_dict), supported_dtypes=SUPPORTED_DTYPES
    )


def check_weights(state_dict: Mapping[str, torch.Tensor], config: OmniGen2Config, source: str) -> None:
    """Raises CheckpointError unless every weight of the transformer is there, in its shape."""
    expected = OmniGen2Transformer(config, device="meta").state_dict()
    missing = [name for name in expected if name not in state_dict]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of {len(expected)} weights (the first is {missing[0]}); "
            "it is cut short or belongs to another model, download it again"
        )
    for name, tensor in expected.items():
        found = state_dict[name]
        packed = f"{name.removesuffix('.weight')}.comfy_quant" in state_dict
        if found.shape != tensor.shape and not packed:
            raise CheckpointError(
                f"{source} has {name} in shape {list(found.shape)}, but its config asks for {list(tensor.shape)}; "
                "the weights and the config belong to different models"
            )


def with_fp8_scales(state_dict: Mapping[str, torch.Tensor], *, quantise: bool, source: str) -> dict[str, torch.Tensor]:
    """The same weights with each fp8 matrix in ComfyUI's quantised form: values, a scale and a format entry.

    Matrices stored as fp8 keep the scale that the file has for them, under either name in use, else they get the
    scale 1. Those with a scale for each row, norms and biases are taken out of fp8. quantise: turn the other matrices
    into fp8 too, scaled so that the largest value just fits. source: how messages name the weights.

    Raises CheckpointError for scaled weights that are not fp8, or whose scales are for blocks.
    """
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        layer, _, last = name.rpartition(".")
        if f"{layer}.comfy_quant" in state_dict:
            out[name] = tensor
            continue
        if last in WEIGHT_SCALES or last in UNUSED_SCALES:
            continue
        names = [f"{layer}.{scale}" for scale in WEIGHT_SCALES] if last == "weight" else []
        scales = {key: state_dict[key] for key in names if key in state_dict}
        is_matrix = last == "weight" and tensor.ndim == 2
        stays = tensor.dtype == FP8 and is_matrix and all(scale.numel() == 1 for scale in scales.values())
        if not stays and (scales or tensor.dtype == FP8):
            tensor = dequantise({name: tensor, **scales}, torch.bfloat16, source)[name]
        if stays:
            scale = next(iter(scales.values()), torch.ones(())).float().reshape(())
        elif quantise and is_matrix:
            values = tensor.float()
            scale = (values.abs().amax() / FP8_LARGEST).clamp_min(1e-12)
            tensor = (values / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8)
        else:
            out[name] = tensor
            continue
        out[name] = tensor
        out[f"{layer}.weight_scale"] = scale
        out[f"{layer}.comfy_quant"] = quantisation_note(FP8_FORMAT)
    return out


def profile_of(model: comfy.model_patcher.ModelPatcher) -> ModelProfile:
    """The profile of a MODEL; the published one for a model of ComfyUI's own loaders."""
    return getattr(model.model, "profile", PUBLISHED)
