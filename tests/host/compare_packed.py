"""The built-in model from smaller files, loaded as our loaders do, in a process of ComfyUI's own: prints as JSON what
differs from the same numbers held plainly.

python launcher.py compare_packed.py FOLDER
FOLDER holds plain/ (the built-in model), dit.<format>.gguf or .safetensors, and folders of the whole model by format.
"""

import importlib
import json
import sys
from pathlib import Path

from parity import ROOT, load_pack

LORA = ROOT / "omnigen2_core" / "nano" / "weights" / "loras" / "OmniGen2-nano-framed.safetensors"
FORMAT = "q4_k"


class Host:
    """The modules of the pack and of ComfyUI, and a MODEL's answer to inputs that are drawn once."""

    def __init__(self):
        pack = load_pack(cpu=True).__name__

        def module(name):
            return importlib.import_module(f"{pack}.{name}")

        import comfy.hooks
        import comfy.model_management
        import comfy.model_patcher
        import comfy.sd
        import torch

        self.torch, self.comfy = torch, comfy
        self.model, self.packed, self.parts = (module(f"nodes.host.{name}") for name in ("model", "packed", "parts"))
        self.clip, self.core = module("nodes.host.clip"), module("omnigen2_core.checkpoints")
        self.lora, self.quantised = module("omnigen2_core.checkpoints.lora"), module("omnigen2_core.quantised")
        self.config = module("omnigen2_core.transformer").OmniGen2Config
        self.kind = self.core.FileKind.DIT
        draw = torch.Generator().manual_seed(0)
        self.latents = torch.randn(1, 16, 8, 8, generator=draw)
        self.text = torch.randn(1, 7, 160, generator=draw)

    def load(self, path: Path, dtype: str = "fp32", plain: bool = False):
        """A MODEL of a file; `plain`: of the numbers in it, held in fp32."""
        part = self.parts.part_of_file(path, self.kind)
        weights = part.weights()
        if plain:
            weights = self.core.dequantise(weights, self.torch.float32)
        return self.model.load_diffusion_model(
            weights, self.config.from_dict(part.config), weight_dtype=dtype, metadata=part.metadata
        )

    def with_lora(self, patcher, strength: float = 1.0):
        lora = self.lora.to_host_names(self.core.load_lora(LORA))
        return self.comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0.0)[0]

    def answer(self, patcher, load: bool = True):
        if load:
            self.comfy.model_management.load_models_gpu([patcher])
        with self.torch.no_grad():
            return patcher.model.diffusion_model(self.latents, self.torch.tensor([0.5]), self.text)

    def kept(self, patcher) -> int:
        """How many weights of the model are packed."""
        weights = patcher.model.diffusion_model.parameters()
        return sum(isinstance(weight, self.quantised.PackedTensor) for weight in weights)


def off(found, exact) -> float:
    return ((found - exact).abs().max() / exact.abs().max()).item()


def compare_formats(host: Host, folder: Path) -> dict:
    rows = {}
    for path in sorted(folder.glob("dit.*")):
        patcher = host.load(path)
        found = host.answer(patcher)
        kept = {str(getattr(w, "_qdata", w).dtype).removeprefix("torch.") for w in patcher.model.diffusion_model.parameters()}
        rows[path.stem.partition(".")[2]] = {
            "error": off(found, host.answer(host.load(path, plain=True))),
            "packed": host.kept(patcher),
            "kept": sorted(kept),
            "size": patcher.model_size(),
            "class": type(patcher).__name__,
        }
    return rows


def compare_patches(host: Host, folder: Path) -> dict:
    """A LoRA on a model that is loaded whole, in part, unloaded in part, through hooks, saved, and taken out again."""
    path = next(folder.glob(f"dit.{FORMAT}.*"))
    base, plain = host.load(path), host.load(path, plain=True)
    size, device = base.model_size(), host.torch.device("cpu")
    before, changed = host.answer(plain), host.answer(host.with_lora(plain))
    rows = {"the LoRA changes": off(changed, before)}

    patcher = host.with_lora(base)
    rows["whole"] = off(host.answer(patcher), changed)
    rows["packed with a LoRA"] = host.kept(patcher)
    rows["size with a LoRA"] = patcher.model_size() - size
    # Unloading in part leaves the rest patched as it was, and patches the others as they are used.
    patcher.partially_unload(device, size // 2)
    rows["modules out"] = sum(bool(getattr(m, "weight_function", ())) for m in patcher.model.modules())
    rows["unloaded in part"] = off(host.answer(patcher, load=False), changed)
    patcher.partially_load(device, size)
    rows["loaded again"] = off(host.answer(patcher, load=False), changed)
    rows["clone without"] = off(host.answer(base), before)
    half = host.with_lora(base, 0.5)
    half.patch_model(device_to=device, lowvram_model_memory=size // 2)
    rows["modules in part"] = sum(bool(getattr(m, "weight_function", ())) for m in half.model.modules())
    rows["half in part"] = off(host.answer(half, load=False), host.answer(host.with_lora(plain, 0.5)))
    half.unpatch_model(device)
    rows["unpatched"] = off(host.answer(base), before)

    # As on a device of its own, where the LoRA's tensors wait beside the weights.
    management = host.packed.comfy.model_management
    is_cpu, management.is_device_cpu = management.is_device_cpu, lambda _: False
    try:
        patch = host.packed._patch(*next((key, patcher.patches) for key in patcher.patches), device)
    finally:
        management.is_device_cpu = is_cpu
    key = next(iter(patcher.patches))
    weight = host.comfy.utils.get_attr(base.model, key).numbers()
    other = host.packed._patch(key, patcher.patches, None)
    rows["prepared"] = off(patch(weight.clone()), other(weight.clone()))
    rows["prepared is"] = patch.prepared_patches is not None

    saved = patcher.model_state_dict_for_saving(patcher.model.diffusion_model, "diffusion_model.")
    merged = host.with_lora(plain)
    host.comfy.model_management.load_models_gpu([merged])
    names = [name for name in saved if name.endswith("attn.to_q.weight")]
    weights = merged.model.diffusion_model.state_dict()
    rows["saved"] = max(off(saved[name].to("cpu"), weights[name]) for name in names)
    rows["saved as"] = sorted({str(saved[name].to("cpu").dtype) for name in names})
    rows["saved tensors"] = len(saved) - len(weights)

    hooks = host.comfy.hooks.create_hook_lora(host.lora.to_host_names(host.core.load_lora(LORA)), 1.0, 0.0)
    hooked = base.clone()
    target = host.comfy.hooks.create_target_dict(host.comfy.hooks.EnumWeightTarget.Model)
    hooked.register_all_hook_patches(hooks, target, hooked.model_options)
    host.comfy.model_management.load_models_gpu([hooked])
    for round in ("first", "second"):
        hooked.patch_hooks(hooks)
        rows[f"hooks, {round}"] = off(host.answer(hooked, load=False), changed)
        hooked.patch_hooks(None)
        rows[f"hooks out, {round}"] = off(host.answer(hooked, load=False), before)
    return rows


def compare_encoders(host: Host, folder: Path) -> dict:
    """Hidden states and written tokens of the encoder, packed, against the same numbers held plainly."""
    rows = {}
    for path in sorted(place for place in folder.iterdir() if place.is_dir() and place.name != "plain"):
        part = host.parts.part_of_folder(path, "mllm")
        clip = host.clip.load_clip(part, dtype="fp32")
        plain = folder / "plain"
        exact = host.clip.load_clip(host.parts.part_of_folder(plain, "mllm"), dtype="fp32")
        weights = host.core.dequantise(part.weights(), host.torch.float32)
        exact.cond_stage_model.load_sd(weights)
        states, written = [], []
        for one in (clip, exact):
            tokens = one.tokenize("a large red ring on a blue background")
            states.append(one.encode_from_tokens(tokens))
            written.append(one.generate(tokens, do_sample=False, max_length=4))
        rows[path.name] = {
            "error": off(*states),
            "same words": written[0] == written[1],
            "class": type(clip.patcher).__name__,
            "clone": type(clip.clone().patcher).__name__,
            "size": clip.patcher.model_size(),
        }
    return rows


def main() -> None:
    folder = Path(sys.argv[1])
    host = Host()
    with host.torch.inference_mode():
        rows = {
            "formats": compare_formats(host, folder),
            "patches": compare_patches(host, folder),
            "encoders": compare_encoders(host, folder),
        }
    print(json.dumps(rows))


main()
