"""`python dev.py parity DIR --host`: golden transformer passes and sampling runs through ComfyUI's own machinery.

Run by the private environment's Python through `.ci/launcher.py`.
"""
from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
COMFYUI = ROOT / ".host" / "ComfyUI"


def load_pack(cpu: bool, *options: str) -> ModuleType:
    """The pack as ComfyUI imports it, under a name of its own, beside ComfyUI's modules, which get these options."""
    sys.argv[1:] = [*(["--cpu"] if cpu else []), *options]
    sys.path.insert(0, str(COMFYUI))
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location("omnigen2_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = pack
    spec.loader.exec_module(pack)
    return pack


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py parity --host", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder in the layout of tests/golden")
    parser.add_argument("--device", default="cpu", help="cpu (default), or the device that ComfyUI chooses for any other name")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="dtype of the weights (default: fp32)")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder; give the folder that holds the golden data.")

    pack = load_pack(cpu=options.device == "cpu").__name__
    command = importlib.import_module(f"{pack}.omnigen2_core.parity.__main__")
    try:
        command.usable_device(options.device)
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --device: {error}")
    host = importlib.import_module(f"{pack}.nodes.host.parity")
    parity = importlib.import_module(f"{pack}.omnigen2_core.parity")

    folder = parity.folder.GoldenFolder(options.folder)
    model, dtype = host.HostModel(options.dtype), command.DTYPES[options.dtype]
    parts = {
        "dit": lambda: parity.dit.replay_velocities(folder, model, dtype, host.HOST_TOLERANCE),
        "sampling": lambda: parity.trajectories.replay_trajectories(folder, model, dtype, host.HOST_TOLERANCE),
    }
    status = parity.report.print_rows(row for name, part in parts.items() for row in parity.run.replay_part(name, part))
    print(model.how)
    return status


if __name__ == "__main__":
    sys.exit(main())
