"""Inference computes what training does, to rounding, in fewer passes over memory; and branches of a step share."""

import pytest
import torch
from dit_golden import DitCases, max_error, tiny_dit
from torch import nn

from omnigen2_core.acceleration.protocol import Run
from omnigen2_core.inference import InferencePrecision
from omnigen2_core.joint import LayerStack
from omnigen2_core.layers import ModulatedBlock, PlainBlock
from omnigen2_core.precision import Precision, precision_for
from omnigen2_core.rope import rotation

WIDTH, HEADS, KV_HEADS, INNER, TIME, LENGTH = 24, 4, 2, 40, 10, 7


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def drawn(module, dtype=torch.float32):
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
    return module.to(dtype)


def table():
    return tuple(t[None] for t in rotation(torch.arange(LENGTH)[:, None].expand(-1, 3), (2, 2, 2)))


# Fewer passes


def test_inference_is_chosen_where_no_gradients_are_wanted():
    assert type(precision_for(torch.float32)) is type(precision_for(torch.bfloat16)) is InferencePrecision
    with torch.enable_grad():
        assert type(precision_for(torch.float32)) is Precision


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("rows", [None, slice(2, 6)])
def test_a_block_gives_the_same_and_leaves_its_input_alone(batch, dtype, tolerance, rows):
    block = drawn(ModulatedBlock(WIDTH, HEADS, KV_HEADS, INNER, TIME, 1e-5, operations=nn), dtype)
    x, temb = torch.randn(batch, LENGTH, WIDTH).to(dtype), torch.randn(batch, TIME).to(dtype)
    before = x.clone()
    got, want = (
        block(x, block.modulation(temb, precision), table(), None, precision, None, rows)
        for precision in (InferencePrecision(dtype), Precision(dtype))
    )
    assert torch.allclose(got, want, atol=tolerance, rtol=tolerance)
    assert torch.equal(x, before)


def test_a_block_without_modulation_gives_the_same():
    block, x = drawn(PlainBlock(WIDTH, HEADS, KV_HEADS, INNER, 1e-5, operations=nn)), torch.randn(1, LENGTH, WIDTH)
    got, want = (block(x, table(), None, precision(torch.float32)) for precision in (InferencePrecision, Precision))
    assert torch.allclose(got, want, atol=1e-5)


def test_some_rows_of_a_block_are_those_of_all():
    block = drawn(ModulatedBlock(WIDTH, HEADS, KV_HEADS, INNER, TIME, 1e-5, operations=nn))
    x, precision = torch.randn(1, LENGTH, WIDTH), precision_for(torch.float32)
    arguments = (block.modulation(torch.randn(1, TIME), precision), table(), None, precision, None)
    whole = block(x, *arguments)
    assert torch.allclose(block(x, *arguments, slice(3, 6)), whole[:, 3:6], atol=1e-5)


class Patched(nn.RMSNorm):
    """A host's layer that changes its weight for each use, and one whose weight lies in another dtype."""

    weight_function = (lambda weight: 2 * weight,)

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_that_changes_its_weight_for_each_use_is_asked_itself():
    layer, x = drawn(Patched(WIDTH, eps=1e-5)), torch.randn(1, LENGTH, WIDTH)
    scale = torch.randn(1, 1, WIDTH)
    precision = InferencePrecision(torch.float32)
    assert torch.equal(precision.scaled_norm(x, layer, scale), layer(x) * scale)
    assert torch.allclose(precision.add_normed(x, x.clone(), layer, scale), x + layer(x) * scale)


def test_a_layer_that_is_watched_is_called():
    block, seen = drawn(ModulatedBlock(WIDTH, HEADS, KV_HEADS, INNER, TIME, 1e-5, operations=nn)), []
    for layer in (block.feed_forward.linear_1, block.feed_forward.linear_3, block.norm2, block.attn.norm_q):
        layer.register_forward_hook(lambda *_: seen.append(1))
    precision = InferencePrecision(torch.float32)
    block(torch.randn(1, LENGTH, WIDTH), block.modulation(torch.randn(1, TIME), precision), table(), None, precision)
    assert len(seen) == 4


def test_what_a_cache_keeps_of_the_first_layer_outlives_the_others(golden):
    model, inputs = tiny_dit(golden), DitCases(golden).sample("ref1", 0)
    precision = precision_for(torch.float32)
    stack = LayerStack(model.layers, model.refine(**inputs, precision=precision), precision)
    signal, first = stack.signal(), stack.first()
    before = signal.clone(), first.clone()
    stack.run()
    assert torch.equal(signal, before[0]) and torch.equal(first, before[1])


# Shared by the branches of a step


@pytest.fixture(scope="module")
def model(golden):
    return tiny_dit(golden)


@pytest.fixture
def inputs(golden):
    return DitCases(golden).sample("ref3", 0)


def count_refiners(model):
    """How often the refiners of image and references have run since."""
    counts = {"image": 0, "references": 0, "modulations": 0}

    def counting(name):
        def note(*_):
            counts[name] += 1

        return note

    hooks = [model.noise_refiner[0].register_forward_hook(counting("image"))]
    hooks.append(model.ref_image_refiner[0].register_forward_hook(counting("references")))
    hooks.append(model.layers[1].norm1.linear.register_forward_hook(counting("modulations")))
    return counts, hooks


@pytest.fixture
def counts(model):
    found, hooks = count_refiners(model)
    yield found
    for hook in hooks:
        hook.remove()


def evaluate(model, run, branch, inputs, step=0, key=True, **other):
    given = {**inputs, **other}
    if branch == "uncond":
        given["references"] = None
    return model(**given, state=run.evaluation(branch, step, text_key=branch if key else None))


def test_branches_of_a_step_share_image_references_and_modulations(model, inputs, counts):
    run = Run(2)
    shorter = inputs["text"][:, :-3]
    got = [
        evaluate(model, run, "cond", inputs),
        evaluate(model, run, "uncond", inputs, text=shorter),
        evaluate(model, run, "ref", inputs, text=shorter),
    ]
    # The references of this case have several sizes, and each size is refined by itself.
    sizes = len({reference.shape for reference in inputs["references"][0]})
    assert counts == {"image": 1, "references": sizes, "modulations": 1}
    alone = [
        model(**inputs),
        model(**{**inputs, "text": shorter, "references": None}),
        model(**{**inputs, "text": shorter}),
    ]
    assert max_error(got, alone) < 2e-5


@pytest.mark.parametrize("change", ["latents", "timestep"])
def test_another_image_or_time_is_computed_anew(model, inputs, counts, change):
    run = Run(2)
    evaluate(model, run, "cond", inputs)
    other = {change: inputs[change] * 0.5}
    got = evaluate(model, run, "ref", inputs, **other)
    assert counts["image"] == 2 and counts["modulations"] == 2
    assert max_error([got], [model(**{**inputs, **other})]) < 2e-5


def test_an_image_that_the_sampler_has_written_into_is_another_one(model, inputs, counts):
    run, latents = Run(2), inputs["latents"].clone()
    evaluate(model, run, "cond", inputs, latents=latents)
    latents.mul_(0.5)
    got = evaluate(model, run, "cond", inputs, latents=latents, step=1)
    assert counts["image"] == 2
    assert max_error([got], [model(**{**inputs, "latents": latents})]) < 2e-5


def test_other_references_are_refined_anew(model, inputs, counts):
    run = Run(2)
    evaluate(model, run, "cond", inputs)
    before = counts["references"]
    fewer = [inputs["references"][0][:2]]
    got = evaluate(model, run, "ref", inputs, references=fewer)
    assert counts["image"] == 1 and counts["references"] > before
    assert max_error([got], [model(**{**inputs, "references": fewer})]) < 2e-5


def test_without_a_name_for_the_text_nothing_is_shared(model, inputs, counts):
    run = Run(2)
    for branch in ("cond", "ref"):
        evaluate(model, run, branch, inputs, key=False)
    assert counts["image"] == 2 and not run._shared


def test_of_the_last_layer_only_the_images_tokens_are_computed(model, inputs):
    precision = precision_for(torch.float32)
    joint = model.refine(**inputs, precision=precision)
    seen = []
    hook = model.layers[-1].feed_forward.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    got = LayerStack(model.layers, joint, precision).run()
    hook.remove()
    assert seen == [joint.layouts[0].image_tokens] and got.shape[1] < joint.hidden.shape[1]
    stack, hidden = LayerStack(model.layers, joint, precision), joint.hidden
    for index in range(len(stack)):
        hidden = stack.layer(index, hidden)
    assert torch.allclose(got, joint.image(hidden), atol=1e-5)
