"""The bench on a small model, in a process of ComfyUI's own: prints as JSON how far its pairs differ, how often ComfyUI's
blocks are called in a run and how often the bench says so, and what came out.

python launcher.py compare_bench.py
"""

import importlib
import json
from collections import Counter

from parity import load_pack


def main() -> None:
    pack = load_pack(True, "--use-pytorch-cross-attention").__name__

    def module(name):
        return importlib.import_module(f"{pack}.{name}")

    import torch

    bench, cases, work = (module(f"omnigen2_core.bench.{name}") for name in ("composed", "cases", "work"))
    inputs_of, steps_of, results_of = (module(f"omnigen2_core.bench.{name}") for name in ("inputs", "steps", "results"))
    built_in, whole, host = module("omnigen2_core.bench.built_in"), module("omnigen2_core.bench.whole"), module("nodes.host.bench")
    config = module("omnigen2_core.transformer").OmniGen2Config(
        hidden_size=24, num_layers=3, num_attention_heads=4, num_kv_heads=2, multiple_of=8, axes_dim_rope=(2, 2, 2), text_feat_dim=20
    )  # fmt: skip
    cpu, found = torch.device("cpu"), {}
    with torch.inference_mode():
        inputs = inputs_of.Inputs(config, torch.float32, cpu)
        weights = inputs_of.random_weights(steps_of.one_of_each(config), torch.float32, cpu)
        makers = {"ours": host.our_steps(config, weights, inputs), "native": host.NativeSteps(config, weights, inputs)}
        results = results_of.Results({})
        product = module("omnigen2_core.bench.machine").MatrixProduct(8, 8, 8)
        measured = bench.Bench(makers, built_in.record_patterns(), cpu, torch.float32, 0.0, config, product)
        for task in cases.TASKS:
            measured.measure(cases.parse(f"{task}-64x32"), results)
        found["differences"] = {f"{row.case} {row.kind} {row.tokens}": row.difference for row in results.steps}
        found["claims"] = [claim.what for claim in results.claims]

        weights = inputs_of.random_weights(config, torch.float32, cpu)
        native = host.build_native(config, weights)
        called = Counter()
        for kind in ("context_refiner", "noise_refiner", "ref_image_refiner", "layers"):
            for block in getattr(native, kind):
                block.register_forward_hook(lambda module, given, out, kind=kind: called.update([f"{kind} {given[0].shape[1]}"]))
        case = cases.parse("three-64x32")
        start = whole.start_others(lambda case, branch: host.native_velocity(native, inputs, case, branch))
        whole.whole_run(start, case, case.branches, 2, inputs)
        names = {"text": "context_refiner", "noise": "noise_refiner", "reference": "ref_image_refiner", "layer": "layers"}
        plan = work.native(case, case.branches, 2, config)
        found["called"] = dict(called)
        found["planned"] = {f"{names[s.kind]} {s.queries}": count for s, count in plan.items() if s.kind in names}

        edit, runs = cases.parse("edit-64x32"), {}
        ours = module("omnigen2_core.bench.command")._ours(config, weights, host)
        runs["ours"] = whole.start_ours(ours, inputs, host.attention())
        runs["native"] = start
        latents = [whole.whole_run(begin, edit, edit.branches, 3, inputs) for begin in runs.values()]
        found["whole"] = (latents[0] - latents[1]).abs().max().item()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
