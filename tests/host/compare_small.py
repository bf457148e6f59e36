"""The bench's cases of memory, runs in a row and start, small: what they find, as JSON.

python launcher.py compare_small.py memory | runs | start
"""

import importlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from parity import load_pack

SIZES = {"large": 8e9, "small": 2.2e9}
"""Cards in bytes: one that holds everything, and one that holds a part of the transformer."""


def main() -> None:
    what = sys.argv[1]
    pack = load_pack(True, "--use-pytorch-cross-attention").__name__

    def module(name):
        return importlib.import_module(f"{pack}.{name}")

    host, results = module("nodes.host.bench"), module("omnigen2_core.bench.results").Results({})
    start = module("omnigen2_core.bench.start")
    if what == "memory":
        print(json.dumps(memory(host, module("omnigen2_core.bench.full_size"), start.CONFIGS)))
        return
    if what == "runs":
        module("omnigen2_core.bench.runs").measure(host, results, host.BUILT_IN_LORA, count=12, first=6)
    else:
        kinds = list(start.CONFIGS)
        layers = {kinds[0]: {"num_layers": 1}, kinds[1]: {"num_hidden_layers": 1, "vocab_size": 151936}, kinds[2]: {}}
        small = {kind: config | layers[kind] for kind, config in start.CONFIGS.items()}
        start.measure(host, results, rounds=1, configs=small)
    print(json.dumps({"claims": [asdict(claim) for claim in results.claims], "notes": results.notes}))


def memory(host, full_size, configs) -> dict:
    """Phases of an edit at 256x256 by card: the published width with few layers."""
    kind = next(iter(configs))
    configs = configs | {kind: configs[kind] | {"num_layers": 8}}
    with tempfile.TemporaryDirectory() as folder:
        files = full_size.write_parts(Path(folder), "bf16", configs)
        found = {name: host.edit_phases(files, size, 256, 20) for name, size in SIZES.items()}
    return {name: [asdict(phase) | {"activations": phase.activations} for phase in phases] for name, phases in found.items()}


main()
