"""Loaders: single files and the authors' folder, as MODEL, CLIP and VAE that core nodes take."""

from __future__ import annotations

from typing import Callable

import comfy.model_patcher
import comfy.sd
from comfy_api.latest import io

from ..omnigen2_core.checkpoints import PARTS, FileKind, ModelFolder
from ..omnigen2_core.transformer import OmniGen2Config
from .host import files
from .host.clip import ENCODER_DTYPES, load_clip
from .host.model import WEIGHT_DTYPES, load_diffusion_model
from .host.parts import Part, part_of_file, part_of_folder
from .host.vae import OmniGen2VAE

CATEGORY = "OmniGen2/loaders"

_MODEL_DTYPE_TIP = (
    "How the weights are stored and computed with. auto: bf16 where the device has it, else fp16 if ComfyUI uses that "
    "there, else fp32. fp8, int8 and GGUF files stay so, and only compute in what is chosen. fp8_e4m3fn halves the "
    "memory at some loss of detail."
)
_ENCODER_DTYPE_TIP = (
    "How the weights are stored. auto: as in the file, computed in bf16 where the device has it and in fp32 "
    "elsewhere. fp8_e4m3fn halves the memory at a small loss. fp8, int8 and GGUF files stay so."
)


class OmniGen2LoadDiffusionModel(io.ComfyNode):
    """The transformer from a single file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2LoadDiffusionModel",
            display_name="OmniGen2 Load Diffusion Model",
            category=CATEGORY,
            description="Loads OmniGen2's diffusion model so that references are read one by one and batches of "
            "unequal prompts work, exactly as in the authors' code. Any sampler and LoRA loader takes the result.",
            search_aliases=["omnigen2 unet", "omnigen2 checkpoint", "omnigen2 model loader"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=files.list_files("diffusion_models"),
                    tooltip="A file in models/diffusion_models, such as omnigen2_fp16.safetensors or a .gguf file.",
                ),
                io.Combo.Input(
                    "dtype", options=list(WEIGHT_DTYPES), default="auto", advanced=True, tooltip=_MODEL_DTYPE_TIP
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="The diffusion model, for any sampler or model node."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, unet_name) -> bool | str:
        """Workflows saved on Windows name files with backslashes."""
        return files.check_file("diffusion_models", unet_name)

    @classmethod
    def fingerprint_inputs(cls, unet_name, dtype="auto") -> str:
        return files.fingerprint(files.find_file("diffusion_models", unet_name))

    @classmethod
    def execute(cls, unet_name, dtype="auto") -> io.NodeOutput:
        return io.NodeOutput(_model(_file, "diffusion_models", unet_name, dtype))


class OmniGen2LoadEncoder(io.ComfyNode):
    """Qwen2.5-VL from a single file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2LoadEncoder",
            display_name="OmniGen2 Load Encoder",
            category=CATEGORY,
            description="Loads Qwen2.5-VL 3B, which reads the prompt and, where the file has its vision part, looks "
            "at images.",
            search_aliases=["omnigen2 clip", "omnigen2 text encoder", "qwen2.5-vl", "qwen 2.5 vl 3b"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=files.list_files("text_encoders"),
                    tooltip="A file in models/text_encoders, such as qwen_2.5_vl_fp16.safetensors or a .gguf file.",
                ),
                io.Combo.Input(
                    "dtype", options=list(ENCODER_DTYPES), default="auto", advanced=True, tooltip=_ENCODER_DTYPE_TIP
                ),
            ],
            outputs=[
                io.Clip.Output(
                    "clip", display_name="clip", tooltip="The encoder, for OmniGen2 Encode or CLIP Text Encode."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, text_encoder) -> bool | str:
        """Workflows saved on Windows name files with backslashes."""
        return files.check_file("text_encoders", text_encoder)

    @classmethod
    def fingerprint_inputs(cls, text_encoder, dtype="auto") -> str:
        return files.fingerprint(files.find_file("text_encoders", text_encoder))

    @classmethod
    def execute(cls, text_encoder, dtype="auto") -> io.NodeOutput:
        return io.NodeOutput(_clip(_file, "text_encoders", text_encoder, dtype))


class OmniGen2LoadVAE(io.ComfyNode):
    """The FLUX-shaped VAE from a single file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2LoadVAE",
            display_name="OmniGen2 Load VAE",
            category=CATEGORY,
            description="Loads the VAE that turns pictures into latents and back: FLUX.1's, in either of its two "
            "layouts.",
            search_aliases=["omnigen2 vae", "flux vae", "ae.safetensors"],
            inputs=[
                io.Combo.Input(
                    "vae_name", options=files.list_files("vae"), tooltip="A file in models/vae, such as ae.safetensors."
                ),
            ],
            outputs=[
                io.Vae.Output(
                    "vae", display_name="vae", tooltip="The VAE, for OmniGen2 Encode, VAE Encode and VAE Decode."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, vae_name) -> bool | str:
        """Workflows saved on Windows name files with backslashes."""
        return files.check_file("vae", vae_name)

    @classmethod
    def fingerprint_inputs(cls, vae_name) -> str:
        return files.fingerprint(files.find_file("vae", vae_name))

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(_vae(_file, "vae", vae_name))


class OmniGen2LoadFolder(io.ComfyNode):
    """All three parts from the authors' folder, or from the built-in model's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniGen2LoadFolder",
            display_name="OmniGen2 Load Folder",
            category=CATEGORY,
            description="Loads diffusion model, encoder and VAE from the folder that OmniGen2's authors publish, or "
            "the small model that comes with this pack.",
            search_aliases=["omnigen2 diffusers", "omnigen2 checkpoint", "omnigen2 nano", "load omnigen2"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(files.model_folders()),
                    tooltip="A folder in models/diffusers with transformer, vae, mllm and processor inside, or the "
                    "built-in model.",
                ),
                io.Combo.Input(
                    "dtype", options=list(WEIGHT_DTYPES), default="auto", advanced=True, tooltip=_MODEL_DTYPE_TIP
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="The diffusion model, for any sampler or model node."
                ),
                io.Clip.Output(
                    "clip", display_name="clip", tooltip="The encoder, for OmniGen2 Encode or CLIP Text Encode."
                ),
                io.Vae.Output(
                    "vae", display_name="vae", tooltip="The VAE, for OmniGen2 Encode, VAE Encode and VAE Decode."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder) -> bool | str:
        """Workflows saved on Windows name folders with backslashes."""
        return files.check_folder(folder)

    @classmethod
    def fingerprint_inputs(cls, folder, dtype="auto") -> str:
        return files.fingerprint(None if folder is None else files.resolve_folder(folder))

    @classmethod
    def execute(cls, folder, dtype="auto") -> io.NodeOutput:
        ModelFolder(files.resolve_folder(folder)).check(PARTS)
        # The encoder never computes in fp16, which overflows in it.
        encoder_dtype = dtype if dtype in ENCODER_DTYPES else "auto"
        return io.NodeOutput(
            _model(_folder_part, "transformer", folder, dtype),
            _clip(_folder_part, "mllm", folder, encoder_dtype),
            _vae(_folder_part, "vae", folder),
        )


_KINDS = {"diffusion_models": FileKind.DIT, "text_encoders": FileKind.ENCODER, "vae": FileKind.VAE}


def _file(category: str, name: str) -> Part:
    return part_of_file(files.resolve_file(category, name), _KINDS[category])


def _folder_part(part: str, folder: str) -> Part:
    return part_of_folder(files.resolve_folder(folder), part)


# ComfyUI loads a model a second time from disk when it compiles it or runs it on several devices. So each of these
# leaves on the patcher a function, with its arguments, that gives the patcher again.


def _model(
    read: Callable[[str, str], Part], place: str, name: str, dtype: str, *, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    part = read(place, name)
    config = OmniGen2Config.from_dict(part.config)
    return load_diffusion_model(
        part.weights(),
        config,
        part.profile,
        source=part.source,
        weight_dtype=dtype,
        metadata=part.metadata,
        reload=(_model, (read, place, name, dtype)),
        disable_dynamic=disable_dynamic,
    )


def _clip(
    read: Callable[[str, str], Part], place: str, name: str, dtype: str, *, disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    clip = load_clip(read(place, name), dtype=dtype, disable_dynamic=disable_dynamic)
    clip.patcher.cached_patcher_init = (_clip_patcher, (read, place, name, dtype))
    return clip


def _clip_patcher(*arguments, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return _clip(*arguments, disable_dynamic=disable_dynamic).patcher


def _vae(read: Callable[[str, str], Part], place: str, name: str, *, disable_dynamic: bool = False) -> OmniGen2VAE:
    vae = OmniGen2VAE(read(place, name), disable_dynamic=disable_dynamic)
    vae.patcher.cached_patcher_init = (_vae_patcher, (read, place, name))
    return vae


def _vae_patcher(*arguments, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return _vae(*arguments, disable_dynamic=disable_dynamic).patcher
