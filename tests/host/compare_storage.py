"""Every transformer file of a folder, loaded as our loader does; prints how each one's velocity differs from that of
plain.safetensors, and what the weights are kept in, as JSON.

python launcher.py compare_storage.py FOLDER
"""

import importlib
import json
import sys
from pathlib import Path

from parity import load_pack

SEED = 0


def main() -> None:
    folder = Path(sys.argv[1])
    pack = load_pack(cpu=True).__name__
    import comfy.model_management as management
    import torch

    nodes = importlib.import_module(f"{pack}.nodes.loaders")
    parts = importlib.import_module(f"{pack}.nodes.host.parts")

    def velocity(path: Path, dtype: str) -> tuple[torch.Tensor, set[str]]:
        patcher = nodes._model(lambda *_: parts.part_of_file(path, nodes.FileKind.DIT), "", "", dtype)
        management.load_models_gpu([patcher])
        model = patcher.model.diffusion_model
        generator = torch.Generator().manual_seed(SEED)
        latents = torch.randn(1, 16, 8, 8, generator=generator)
        text = torch.randn(1, 7, model.config.text_feat_dim, generator=generator)
        with torch.no_grad():
            out = model(latents, torch.tensor([0.5]), text)
        kept = {str(getattr(w, "_qdata", w).dtype).removeprefix("torch.") for w in model.parameters()}
        return out, kept

    exact, _ = velocity(folder / "plain.safetensors", "fp32")
    rows = {}

    def compare(name: str, path: Path, dtype: str = "auto") -> None:
        found, kept = velocity(path, dtype)
        rows[name] = {"error": ((found - exact).norm() / exact.norm()).item(), "kept": sorted(kept)}

    for path in sorted(folder.glob("*.safetensors")):
        compare(path.stem, path)
    compare("made fp8", folder / "plain.safetensors", "fp8_e4m3fn")
    # As on Apple's graphics cards.
    management.supports_cast = lambda device, dtype: "float8" not in str(dtype)
    for path in sorted(path for path in folder.glob("*.safetensors") if "prefix" not in path.stem):
        compare(f"{path.stem}, a device without fp8", path)
    print(json.dumps(rows))


main()
