"""Compiled parts of blocks: the same numbers, one graph for all layers, sizes, prompts, steps and LoRAs."""

import pytest
import torch
from dit_golden import DitCases, max_error, tiny_dit

from omnigen2_core import compiled as module
from omnigen2_core.acceleration.presets import PRESETS
from omnigen2_core.checkpoints import load_weights
from omnigen2_core.compiled import CompiledParts, require_compiler
from omnigen2_core.errors import CompileError
from omnigen2_core.quantised import GGUF_FORMATS, PackedTensor, packed_operations
from omnigen2_core.transformer import OmniGen2Transformer

# Queries, keys and values; those for the image alone; what follows the attention. And the text refiner's two.
GRAPHS = 5


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()
    # More threads than the machine has free wait for one another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


class Counted:
    """Compiled parts whose graphs run as they were traced, and how many there are."""

    def __init__(self):
        self.graphs = 0
        self.parts = CompiledParts(self._compile)

    def _compile(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def inputs(model, rows=12, columns=10, text=9, references=(), batch=1, time=0.3):
    """A forward pass's arguments, drawn. No two sizes agree, so that no graph takes them for one."""
    channels, width = model.config.in_channels, model.config.text_feat_dim
    drawn = [[torch.randn(channels, *size) for size in references] for _ in range(batch)]
    latents, text = torch.randn(batch, channels, rows, columns), torch.randn(batch, text, width)
    return latents, torch.full((batch,), time), text, None, drawn


def error(model, parts, **sizes) -> float:
    arguments = inputs(model, **sizes)
    return max_error(model(*arguments, compiled=parts), model(*arguments))


CHANGES = {
    "size": {"rows": 18, "columns": 14},
    "prompt": {"text": 23},
    "one reference": {"references": [(12, 6)]},
    "three references": {"references": [(12, 6), (8, 6), (10, 14)]},
    "time": {"time": 0.8},
}


def test_all_layers_have_their_graphs_in_common_and_nothing_that_users_change_makes_a_new_one(golden):
    model, counted = tiny_dit(golden), Counted()
    assert error(model, counted.parts) < 1e-5
    assert counted.graphs == GRAPHS
    for name, change in CHANGES.items():
        assert error(model, counted.parts, **change) < 1e-5, name
        assert counted.graphs == GRAPHS, name
    assert counted.parts.skipped == 0


def test_a_batch_has_graphs_of_its_own_for_any_number_of_pictures(golden):
    model, counted = tiny_dit(golden), Counted()
    assert error(model, counted.parts, batch=2) < 1e-5
    assert counted.graphs == GRAPHS
    assert error(model, counted.parts, batch=3, rows=18, text=5) < 1e-5
    assert counted.graphs == GRAPHS


def test_weights_that_a_lora_has_changed_need_no_new_graph(golden):
    model, counted = tiny_dit(golden), Counted()
    error(model, counted.parts)
    layer = model.layers[0].attn.to_q
    # Written into, and put in another's place: both ways in which hosts merge a LoRA.
    layer.weight.add_(0.3 * torch.randn_like(layer.weight))
    assert error(model, counted.parts) < 1e-5
    layer.weight = torch.nn.Parameter(layer.weight + 0.3, requires_grad=False)
    assert error(model, counted.parts) < 1e-5
    assert counted.graphs == GRAPHS and counted.parts.skipped == 0


def test_batches_of_mixed_lengths_are_computed_right(golden):
    model, cases, counted = tiny_dit(golden), DitCases(golden), Counted()
    for name in ("ref3", "batch2_mixed", "batch2_sizes"):
        assert max_error(list(model(**cases.inputs(name), compiled=counted.parts)), cases.velocities(name)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compiled_too(golden, dtype):
    model, counted = tiny_dit(golden, dtype), Counted()
    arguments = DitCases(golden).inputs("ref1", dtype)
    got, want = model(**arguments, compiled=counted.parts), model(**arguments)
    assert counted.graphs == GRAPHS and counted.parts.skipped == 0
    assert max_error(list(got), list(want)) < 0.1


@pytest.mark.parametrize("preset", ["balanced", "turbo"])
def test_what_is_skipped_is_the_same_compiled_and_not(golden, preset):
    model, counted = tiny_dit(golden), Counted()
    arguments, steps = inputs(model, references=[(12, 6)]), 6
    records, outputs = [], []
    for parts in (None, counted.parts):
        run = PRESETS[preset].acceleration.run(steps)

        def ask(branches, step):
            found = {}
            for branch in branches:
                latents, _, text, mask, references = arguments
                place = run.evaluation(branch, step, text_key=branch)
                time = torch.full((1,), step / steps)
                scale = 1.0 if branch == "cond" else 0.5
                found[branch] = model(latents, time, scale * text, mask, references, compiled=parts, state=place)
            return found

        for step in range(steps):
            outputs.append(run.predict(["cond", "uncond"], step, lambda some, step=step: ask(some, step))["cond"])
        records.append([(work.step, work.branch, work.kind) for work in run.record])
    assert records[0] == records[1] and len({kind for *_, kind in records[0]}) > 1
    assert max_error(outputs[:steps], outputs[steps:]) < 1e-4
    # Queries of the image alone are those of all tokens there are, so no graph is new.
    assert counted.graphs == GRAPHS


def test_a_block_that_cannot_be_compiled_is_computed_as_it_stands(golden):
    model, counted = tiny_dit(golden), Counted()
    model.layers[0].attn.to_q.weight_function = [lambda weight: weight]
    assert error(model, counted.parts) < 1e-5
    assert counted.parts.skipped == 2 and counted.graphs == GRAPHS


def test_packed_weights_are_computed_as_they_stand(golden):
    dense, counted = tiny_dit(golden), Counted()
    model = OmniGen2Transformer(dense.config, operations=packed_operations(torch.nn), device="meta")
    state = dense.state_dict()
    name, entry = "layers.0.feed_forward.linear_1.weight", GGUF_FORMATS["Q8_0"]
    blocks = entry.encode(state[name].reshape(-1, entry.values))
    state[name] = PackedTensor.from_blocks(blocks, entry, state[name].shape)
    load_weights(model, state, "the golden weights")
    assert error(model.eval(), counted.parts) < 1e-5
    assert counted.parts.skipped == 2 and counted.graphs == GRAPHS


def test_real_compilation_agrees(golden):
    require_compiler(torch.device("cpu"))
    assert error(tiny_dit(golden), CompiledParts(), references=[(12, 6)]) < 1e-5


# What cannot be compiled


def test_a_failing_compiler_is_named_in_a_sentence(golden):
    def fails(graph, inputs):
        raise RuntimeError("no such thing")

    with pytest.raises(CompileError, match="cannot compile the model on this machine .*no such thing.*remove OmniGen2 Compile"):
        error(tiny_dit(golden), CompiledParts(fails))


def test_a_missing_compiler_is_told_before_anything_is_compiled(monkeypatch):
    from torch._inductor import cpp_builder

    def none():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(CompileError, match="C.. compiler, and none was found; install one .*Build Tools"):
        require_compiler(torch.device("cpu"))


def test_missing_headers_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(CompileError, match="no Python.h"):
        require_compiler(torch.device("cpu"))


@pytest.mark.parametrize("installed, what", [(False, "triton-windows"), (True, "too old for it")])
def test_a_card_needs_triton(monkeypatch, installed, what):
    from torch.utils import _triton

    monkeypatch.setattr(_triton, "has_triton_package", lambda: installed)
    monkeypatch.setattr(_triton, "has_triton", lambda: False)
    with pytest.raises(CompileError, match=what):
        require_compiler(torch.device("cuda"))
