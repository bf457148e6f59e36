"""`python dev.py bench [CASE...]`: the bench, with ComfyUI's own model in the same process.

Run by the private environment's Python through `.ci/launcher.py`.
"""
from __future__ import annotations

import importlib
import sys

from parity import load_pack


def main() -> int:
    arguments = sys.argv[1:]
    # PyTorch attention on both sides, whatever ComfyUI would choose on this device.
    cpu = "cuda" not in " ".join(arguments)
    pack = load_pack(cpu, "--use-pytorch-cross-attention").__name__
    command = importlib.import_module(f"{pack}.omnigen2_core.bench.command")
    return command.main(arguments, importlib.import_module(f"{pack}.nodes.host.bench"))


if __name__ == "__main__":
    sys.exit(main())
