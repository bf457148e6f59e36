"""Weights on disk: what a file is, the folder and single-file layouts, fp8, int8, GGUF, names, LoRA."""

from .folder import PARTS, ModelFolder, find_model_folders, is_model_folder
from .header import is_gguf
from .identify import CONFIG_KEY, PROFILE_KEY, FileInfo, FileKind, identify
from .keymaps import is_diffusers_vae, vae_to_bfl, vae_to_diffusers
from .lora import LoRA, LoRAWeights, linear_shapes, load_lora, merge_lora, normalise_lora, to_host_names
from .refusals import require, require_vision
from .scaled import FP8_FORMAT, INT8_FORMAT, UNUSED_SCALES, WEIGHT_SCALES, as_stored, dequantise, pack_int8, quantisation_note
from .single_file import SingleFile, config_of
from .tensors import as_parameters, load_weights, read_tensors

__all__ = [
    "CONFIG_KEY",
    "FP8_FORMAT",
    "INT8_FORMAT",
    "PARTS",
    "PROFILE_KEY",
    "UNUSED_SCALES",
    "WEIGHT_SCALES",
    "FileInfo",
    "FileKind",
    "LoRA",
    "LoRAWeights",
    "ModelFolder",
    "SingleFile",
    "as_parameters",
    "as_stored",
    "config_of",
    "dequantise",
    "find_model_folders",
    "identify",
    "is_diffusers_vae",
    "is_gguf",
    "is_model_folder",
    "linear_shapes",
    "load_lora",
    "load_weights",
    "merge_lora",
    "normalise_lora",
    "pack_int8",
    "quantisation_note",
    "read_tensors",
    "require",
    "require_vision",
    "to_host_names",
    "vae_to_bfl",
    "vae_to_diffusers",
]
