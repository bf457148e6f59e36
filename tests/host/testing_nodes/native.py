"""Testing nodes that bring ComfyUI's own OmniGen2 in: it knows only the published size by itself."""
import json

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import folder_paths
import torch

NATIVE_SETTINGS = ("patch_size", "in_channels", "hidden_size", "num_layers", "num_refiner_layers", "num_attention_heads",
                   "num_kv_heads", "multiple_of", "norm_eps", "axes_dim_rope", "text_feat_dim", "timestep_scale")


class TestLoadNativeModel:
    """ComfyUI's own MODEL from a file in models/diffusion_models whose metadata holds the config.

    It computes in `dtype` whatever the device: on a CPU, ComfyUI would compute in fp32.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {"default": ""})}, "optional": {"dtype": (["float32", "float16"],)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "testing"

    def load(self, file, dtype="float32"):
        path = folder_paths.get_full_path_or_raise("diffusion_models", file)
        weights, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        config = json.loads(metadata["omnigen2_config"])
        settings = {name: config[name] for name in NATIVE_SETTINGS}
        model_config = comfy.supported_models.Omnigen2({"image_model": "omnigen2", **settings})
        model_config.set_inference_dtype(getattr(torch, dtype), None)
        model = model_config.get_model(weights)
        patcher = comfy.model_patcher.CoreModelPatcher(
            model, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device())
        model.load_model_weights(weights)
        return (patcher,)


class TestLoadOtherModel:
    """A MODEL that is no OmniGen2."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "testing"

    def load(self):
        device = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(torch.nn.Identity(), device, device),)


NODES = {node.__name__: node for node in (TestLoadNativeModel, TestLoadOtherModel)}
