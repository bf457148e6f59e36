"""Models whose weights are the mapped files themselves, in a process of ComfyUI's own: prints as JSON what lies where, and
what patching, deleting and dropping do to it. Linux only, which tells what is mapped.

python launcher.py compare_mapped.py FOLDER LORA
FOLDER holds plain/ (a whole model in fp32), odd.safetensors (its transformer, at addresses that fp32 does not divide) and
vae.safetensors (its VAE in fp16). plain/ is deleted.
"""

import gc
import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path

from parity import load_pack

STEP = 0.5
"""Where in time the transformer is asked."""


class Host:
    """The loaders, with what tells where a model's weights lie."""

    def __init__(self):
        pack = load_pack(cpu=True).__name__

        def module(name):
            return importlib.import_module(f"{pack}.{name}")

        import comfy.hooks
        import comfy.model_management
        import comfy.sd
        import comfy.utils
        import torch

        self.torch, self.comfy = torch, comfy
        self.loaders, self.parts = module("nodes.loaders"), module("nodes.host.parts")
        self.taking_over = module("nodes.host.taking_over")
        self.core, self.lora = module("omnigen2_core.checkpoints"), module("omnigen2_core.checkpoints.lora")
        draw = torch.Generator().manual_seed(0)
        self.latents = torch.randn(1, 16, 8, 8, generator=draw)

    def folder(self, path: Path, dtype: str = "fp32") -> dict:
        """MODEL, CLIP and VAE of a model folder."""

        def part(name):
            return lambda *_: self.parts.part_of_folder(path, name)

        return {
            "transformer": self.loaders._model(part("transformer"), "", "", dtype),
            "mllm": self.loaders._clip(part("mllm"), "", "", dtype),
            "vae": self.loaders._vae(part("vae"), "", ""),
        }

    def file(self, path: Path, kind: str):
        load = {"DIT": self.loaders._model, "VAE": self.loaders._vae}[kind]
        rest = ("fp32",) if kind == "DIT" else ()
        return load(lambda *_: self.parts.part_of_file(path, self.core.FileKind[kind]), "", "", *rest)

    def answer(self, patcher, load: bool = True):
        if load:
            self.comfy.model_management.load_models_gpu([patcher])
        model = patcher.model.diffusion_model
        text = self.torch.randn(1, 7, model.config.text_feat_dim, generator=self.torch.Generator().manual_seed(1))
        with self.torch.no_grad():
            return model(self.latents, self.torch.tensor([STEP]), text)


def module_of(loaded) -> object:
    return getattr(loaded, "patcher", loaded).model


def mapped_ranges(below: Path) -> list[tuple[int, int]]:
    """Addresses at which files below a folder lie in this process's memory."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith(f"{below}/")]
    return [(int(first, 16), int(last, 16)) for first, last in spans]


def share(loaded, below: Path) -> float:
    """How many of a model's bytes of weights lie in mapped files below a folder, from 0 to 1."""
    ranges = mapped_ranges(below)
    weights = list(module_of(loaded).parameters())
    inside = [w.nbytes for w in weights if any(first <= w.data_ptr() < last for first, last in ranges)]
    return sum(inside) / sum(w.nbytes for w in weights)


def digest(folder: Path) -> str:
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def compare_patches(host: Host, folder: Path, lora: Path, patcher) -> dict:
    """A LoRA put in and taken out in each of ComfyUI's ways; two of them write into the weights."""
    management = host.comfy.model_management
    names = host.lora.to_host_names(host.core.load_lora(lora))
    before, stored = host.answer(patcher), digest(folder)
    rows = {}

    def note(name: str, put_in, take_out) -> None:
        put_in()
        changed = host.answer(patcher, load=False)
        held, same = share(patcher, folder), digest(folder) == stored
        take_out()
        rows[name] = {
            "changes": not host.torch.allclose(changed, before, atol=1e-3),
            "file is as it was": same and digest(folder) == stored,
            "comes back": host.torch.equal(host.answer(patcher, load=False), before),
            "mapped meanwhile": held,
            "mapped after": share(patcher, folder),
        }

    patched = host.comfy.sd.load_lora_for_models(patcher, None, names, 1.0, 0.0)[0]
    unload = lambda: management.load_models_gpu([patcher])
    note("whole", lambda: management.load_models_gpu([patched]), unload)
    in_place = patched.clone()
    in_place.weight_inplace_update = True
    note("in place", lambda: management.load_models_gpu([in_place]), unload)
    hooks = host.comfy.hooks.create_hook_lora(names, 1.0, 0.0)
    hooked = patcher.clone()
    target = host.comfy.hooks.create_target_dict(host.comfy.hooks.EnumWeightTarget.Model)
    hooked.register_all_hook_patches(hooks, target, hooked.model_options)
    management.load_models_gpu([hooked])
    note("hooks", lambda: hooked.patch_hooks(hooks), lambda: hooked.patch_hooks(None))
    return rows


def compare_places(host: Host, folder: Path, lora: Path) -> dict:
    plain = folder / "plain"
    loaded = host.folder(plain)
    rows = {"whole": {name: share(part, folder) for name, part in loaded.items()}}
    converted = host.folder(plain, "bf16")
    rows["converted"] = {name: share(converted[name], folder) for name in ("transformer", "mllm")}
    rows["converted to"] = sorted({str(w.dtype) for w in module_of(converted["transformer"]).parameters()})
    del converted
    host.comfy.utils.DISABLE_MMAP = True
    rows["without mmap"] = {name: share(part, folder) for name, part in host.folder(plain).items()}
    host.comfy.utils.DISABLE_MMAP = False
    rows["patches"] = compare_patches(host, plain, lora, loaded["transformer"])
    before = host.answer(loaded["transformer"])
    rows["odd"] = compare_odd(host, folder, before)
    rows["vae"] = compare_vae(host, folder, loaded["vae"])
    shutil.rmtree(plain)
    rows["answers without its file"] = host.torch.equal(host.answer(loaded["transformer"]), before)
    rows["mapped"] = len(mapped_ranges(folder)) > 0
    host.comfy.model_management.unload_all_models()
    del loaded
    gc.collect()
    rows["mapped when dropped"] = len(mapped_ranges(folder)) > 0
    return rows


def compare_odd(host: Host, folder: Path, exact) -> dict:
    model = host.file(folder / "odd.safetensors", "DIT")
    weights = list(module_of(model).parameters())
    return {
        "addresses fit": all(w.data_ptr() % w.element_size() == 0 for w in weights),
        "same answer": host.torch.allclose(host.answer(model), exact, atol=1e-5),
    }


def compare_vae(host: Host, folder: Path, exact) -> dict:
    vae = host.file(folder / "vae.safetensors", "VAE")
    picture = host.torch.rand(1, 32, 32, 3, generator=host.torch.Generator().manual_seed(2))
    # The same numbers, held in fp32.
    module_of(exact).load_state_dict({name: w.float() for name, w in module_of(vae).state_dict().items()})
    found, held = vae.encode(picture), exact.encode(picture)
    return {
        "kept": sorted({str(w.dtype) for w in module_of(vae).parameters()}),
        "mapped": share(vae, folder),
        "same latents": host.torch.equal(found, held),
        "same picture": host.torch.equal(vae.decode(found), exact.decode(held)),
    }


def compare_devices(host: Host) -> dict:
    """What is loaded how where the model computes elsewhere, or ComfyUI pages it."""
    layer = host.torch.nn.Linear(2, 2, bias=False)
    state = {"weight": host.torch.ones(2, 2, dtype=host.torch.float16)}

    def rule(device: str, pages: bool) -> list:
        given, assign = host.taking_over.to_load(layer, state, pages=pages, load_device=host.torch.device(device))
        return [str(given["weight"].dtype), assign]

    rows = {"cpu": rule("cpu", False), "card": rule("cuda", False), "paged": rule("cuda", True)}
    host.comfy.memory_management.aimdo_enabled = True
    rows["cpu beside a card that is paged for"] = rule("cpu", False)
    host.comfy.memory_management.aimdo_enabled = False
    return rows


def main() -> None:
    folder, lora = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    host = Host()
    with host.torch.inference_mode():
        rows = {"devices": compare_devices(host), **compare_places(host, folder, lora)}
    print(json.dumps(rows))


main()
