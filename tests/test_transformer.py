"""The DiT gives the reference's numbers, whatever the batch, and refuses what it cannot take."""

import json

import pytest
import torch
from dit_golden import CASES, DitCases, max_error, relative_rms, tiny_dit

from omnigen2_core.errors import CheckpointError, PromptError, ReferenceImageError, SizeError
from omnigen2_core.precision import default_attention, precision_for
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer


@pytest.fixture(scope="module")
def cases(golden):
    return DitCases(golden)


@pytest.fixture(scope="module")
def model(golden):
    return tiny_dit(golden)


@pytest.mark.parametrize("name", CASES)
def test_golden_velocity_in_fp32(name, model, cases):
    velocity = model(**cases.inputs(name))
    assert isinstance(velocity, list) == cases.about[name]["images_given_as_list"]
    assert max_error(velocity, cases.velocities(name)) <= 2e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("name", CASES)
def test_golden_velocity_in_half_precision(name, dtype, tolerance, golden, cases):
    velocity = tiny_dit(golden, dtype)(**cases.inputs(name, dtype))
    assert all(v.dtype is dtype for v in velocity)
    assert relative_rms(velocity, cases.velocities(name)) <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_golden_values_inside(name, model, cases):
    precision = precision_for(torch.float32)
    joint = model.refine(**cases.inputs(name), precision=precision)
    real = cases.debug(name, "joint_mask").bool()
    assert joint.mask is None if real.all() else torch.equal(joint.mask[:, 0, 0], real)
    assert max_error([joint.temb], [cases.debug(name, "temb")]) <= 2e-5
    assert max_error([joint.hidden * real[..., None]], [cases.debug(name, "joint_in")]) <= 5e-5
    for table, golden_table in zip(joint.rotation, ("rope_real", "rope_imag"), strict=True):
        table = table.expand(len(real), -1, -1)
        assert max_error([table * real[..., None]], [cases.debug(name, golden_table) * real[..., None]]) <= 1e-6


@pytest.mark.parametrize("name", ["batch2_mixed", "batch2_sizes", "batch3_timesteps"])
def test_a_batch_gives_the_numbers_of_single_runs(name, model, cases):
    together = model(**cases.inputs(name))
    alone = [model(**cases.sample(name, i))[0] for i in range(len(together))]
    assert max_error(together, alone) <= 1e-5


@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
def test_padded_text_has_no_influence(junk, model, cases):
    inputs = cases.inputs("batch2_mixed")
    plain = model(**inputs)
    padded = ~inputs["text_mask"].bool()
    assert padded.any()
    inputs["text"] = inputs["text"].masked_fill(padded[..., None], junk)
    assert torch.equal(model(**inputs), plain)


def test_one_samples_text_does_not_reach_another(model, cases):
    inputs = cases.inputs("batch3_timesteps")
    plain = model(**inputs)
    inputs["text"] = inputs["text"].clone()
    inputs["text"][2] += 1
    changed = model(**inputs)
    assert torch.equal(changed[:2], plain[:2])
    assert (changed[2] - plain[2]).abs().max() > 0.1


def test_attention_gets_a_mask_only_where_something_is_padded(model, cases):
    masks = []

    def spy(q, k, v, mask):
        masks.append(mask)
        return default_attention(q, k, v, mask)

    model(**cases.inputs("ref3"), attention=spy)
    assert masks and all(mask is None for mask in masks)
    masks.clear()
    model(**cases.inputs("batch2_mixed"), attention=spy)
    assert any(mask is not None for mask in masks)


def test_key_value_heads_are_passed_unrepeated(model, cases):
    seen = []

    def spy(q, k, v, mask):
        seen.append((q.shape[1], k.shape[1], v.shape[1]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)

    model(**cases.inputs("t2i"), attention=spy)
    assert set(seen) == {(6, 2, 2)}


def test_references_are_refined_without_seeing_each_other(model, cases):
    inputs = cases.inputs("ref3")
    precision = precision_for(torch.float32)
    plain = model.refine(**inputs, precision=precision)
    inputs["references"] = [[ref.clone() for ref in inputs["references"][0]]]
    inputs["references"][0][1] += 1
    changed = model.refine(**inputs, precision=precision)
    layout = plain.layouts[0]
    start, end = layout.reference_starts[1:3]
    moved = (changed.hidden - plain.hidden).abs().amax(2)[0]
    assert moved[start:end].min() > 1e-3
    assert moved[:start].max() == 0 and moved[end:].max() == 0


def test_references_of_one_size_equal_each_refined_by_itself(model, cases):
    inputs = cases.inputs("ref1")
    first = inputs["references"][0][0]
    inputs["references"] = [[first, first.flip(2)]]
    precision = precision_for(torch.float32)
    joint = model.refine(**inputs, precision=precision)
    inputs["references"] = [[first]]
    alone = model.refine(**inputs, precision=precision)
    start, end = alone.layouts[0].reference_starts[0], alone.layouts[0].image_start
    assert max_error([joint.hidden[:, start:end]], [alone.hidden[:, start:end]]) <= 1e-6


@pytest.mark.parametrize("references", [[], None])
def test_an_empty_reference_list_is_no_references(references, model, cases):
    inputs = cases.inputs("t2i")
    plain = model(**inputs)
    inputs["references"] = [references]
    assert torch.equal(model(**inputs), plain)
    inputs["references"] = None
    assert torch.equal(model(**inputs), plain)


def test_a_list_of_latents_gives_the_tensors_numbers(model, cases):
    inputs = cases.inputs("batch2_mixed")
    stacked = model(**inputs)
    inputs["latents"] = list(inputs["latents"])
    velocity = model(**inputs)
    assert isinstance(velocity, list) and torch.equal(torch.stack(velocity), stacked)


def test_text_lengths_stand_for_the_mask(model, cases):
    inputs = cases.inputs("batch3_timesteps")
    plain = model(**inputs)
    lengths = inputs.pop("text_mask").sum(1).tolist()
    assert torch.equal(model(**inputs, text_lengths=lengths), plain)


def test_a_long_prompt_with_a_large_reference_has_no_position_limit(model):
    # Text 1024 + shift 40 passes every axes_lens of the tiny config and, at full size, the reference's table.
    velocity = model(
        torch.randn(1, 16, 4, 4), torch.tensor([0.5]), torch.randn(1, 1024, 64), None, [[torch.randn(16, 80, 4)]]
    )
    assert velocity.isfinite().all()


def test_an_empty_text_works_alone_and_beside_another(model, cases):
    inputs = cases.inputs("batch2_mixed")
    inputs["text_mask"] = inputs["text_mask"].clone()
    inputs["text_mask"][0] = 0
    together = model(**inputs)
    alone = model(inputs["latents"][:1], inputs["timestep"][:1], inputs["text"][:1, :0])
    assert together.isfinite().all()
    assert max_error(together[:1], alone) <= 1e-5


def test_a_sixth_reference_is_refused(model, cases):
    inputs = cases.inputs("ref5")
    inputs["references"][0].append(inputs["references"][0][0])
    with pytest.raises(ReferenceImageError, match="6 reference images.*at most 5"):
        model(**inputs)


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (0, 8)])
def test_odd_latents_are_refused(size, model, cases):
    inputs = cases.inputs("t2i")
    with pytest.raises(SizeError, match=f"{size[0]}x{size[1]}.*multiples of 2"):
        model(**{**inputs, "latents": torch.zeros(1, 16, *size)})
    with pytest.raises(SizeError, match=f"{size[0]}x{size[1]}"):
        model(**{**inputs, "references": [[torch.zeros(16, *size)]]})


def test_foreign_inputs_are_refused_in_a_sentence(model, cases):
    inputs = cases.inputs("t2i")
    with pytest.raises(SizeError, match="4 channels.*takes 16"):
        model(**{**inputs, "latents": torch.zeros(1, 4, 6, 14)})
    with pytest.raises(PromptError, match="48 wide.*takes 64"):
        model(**{**inputs, "text": torch.zeros(1, 13, 48)})
    with pytest.raises(PromptError, match="mask"):
        model(**{**inputs, "text_mask": torch.ones(1, 12)})
    with pytest.raises(PromptError, match="text for 1 samples"):
        model(**{**inputs, "latents": torch.zeros(2, 16, 6, 14), "references": None})
    with pytest.raises(ReferenceImageError, match="references for 2 samples"):
        model(**{**inputs, "references": [None, None]})


def test_full_size_names_and_shapes_are_the_published_ones(golden):
    published = json.loads((golden / "real_keys.json").read_text())["omnigen2_transformer"]
    model = OmniGen2Transformer(OmniGen2Config(), dtype=torch.bfloat16, device="meta")
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published
    assert all(tensor.is_meta and tensor.dtype is torch.bfloat16 for tensor in model.state_dict().values())


def test_config_reads_published_json_and_refuses_impossible_heads(golden):
    config = OmniGen2Config.from_dict(json.loads((golden / "dit_config.json").read_text()))
    assert (config.feed_forward_size, config.time_width, config.velocity_channels) == (200, 96, 16)
    assert OmniGen2Config().feed_forward_size == 10240
    with pytest.raises(CheckpointError, match="axes_dim_rope"):
        OmniGen2Config(axes_dim_rope=(40, 40, 20))
    with pytest.raises(CheckpointError, match="num_kv_heads"):
        OmniGen2Config(num_kv_heads=4)


def test_weights_come_only_from_the_operations_passed_in(cases):
    class Operations:
        class Linear(torch.nn.Linear):
            pass

        class RMSNorm(torch.nn.RMSNorm):
            pass

        class LayerNorm(torch.nn.LayerNorm):
            pass

    model = OmniGen2Transformer(OmniGen2Config(num_layers=1), operations=Operations, device="meta")
    for module in model.modules():
        if list(module.parameters(recurse=False)) and module is not model:
            assert type(module) in (Operations.Linear, Operations.RMSNorm), module
    assert [name for name, _ in model.named_parameters(recurse=False)] == ["image_index_embedding"]
