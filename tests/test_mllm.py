"""Qwen2.5-VL as encoder and writer equals the reference on the golden cases, under every supported transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from omnigen2_core.checkpoints.published import PUBLISHED_MLLM
from omnigen2_core.errors import CheckpointError, PromptError
from omnigen2_core.mllm import (
    build_mllm,
    encode_text,
    encode_with_images,
    generate_tokens,
    load_mllm_state_dict,
    parameter_shapes,
    to_later_name,
)
from omnigen2_core.mllm_config import MLLMConfig
from omnigen2_core.mrope import rope_positions

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
IMAGE_CASES = ["img1", "img2", "batch2"]
FACTS = json.loads((GOLDEN / "mllm.json").read_text())
SPECIAL = FACTS["special_ids"]


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "mllm_weights.safetensors")


@pytest.fixture(scope="module")
def cases():
    return load_file(GOLDEN / "mllm_cases.safetensors")


@pytest.fixture(scope="module")
def model(weights):
    model = build_mllm(FACTS["config"], dtype=torch.float32)
    load_mllm_state_dict(model, weights)
    return model


def inputs(cases, case):
    return [cases[f"{case}/{name}"] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")]


def difference(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@torch.no_grad()
def test_text_hidden_states_match_the_reference(model, cases):
    hidden = encode_text(model, cases["text/input_ids"], cases["text/attention_mask"])
    assert difference(hidden, cases["text/last_hidden"]) <= TOLERANCE


@torch.no_grad()
def test_a_padded_batch_equals_single_runs(model, cases):
    ids, mask = cases["text/input_ids"], cases["text/attention_mask"]
    together = encode_text(model, ids, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = encode_text(model, ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert difference(together[row, :length], alone[0]) <= 1e-5
        assert not together[row, length:].any()


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_positions_match_the_reference(cases, case):
    ids, mask, _, grid = inputs(cases, case)
    positions, following = rope_positions(ids, mask, grid, image_token_id=SPECIAL["image"], merge_size=2)
    assert torch.equal(positions, cases[f"{case}/position_ids"])
    assert torch.equal(following - ids.shape[1], cases[f"{case}/rope_deltas"][:, 0])


@pytest.mark.parametrize("case", IMAGE_CASES)
@torch.no_grad()
def test_visual_tokens_match_the_reference(model, cases, case):
    visual = model.look(cases[f"{case}/pixel_values"], cases[f"{case}/image_grid_thw"])
    assert difference(visual, cases[f"{case}/dbg.visual_tokens"]) <= TOLERANCE


@pytest.mark.parametrize("case", IMAGE_CASES)
@torch.no_grad()
def test_hidden_states_with_images_match_the_reference(model, cases, case):
    ids, mask, pixels, grid = inputs(cases, case)
    full = model(ids, mask, pixels, grid) * mask.unsqueeze(-1)
    assert difference(full, cases[f"{case}/last_hidden_full"]) <= TOLERANCE
    packed, packed_mask = encode_with_images(model, ids, mask, pixels, grid)
    assert difference(packed, cases[f"{case}/text_embeds"]) <= TOLERANCE
    assert torch.equal(packed_mask, cases[f"{case}/text_mask"])


@pytest.mark.parametrize("case", ["img1", "img2"])
def test_greedy_tokens_match_the_reference_one_for_one(model, cases, case):
    stop = [SPECIAL[name] for name in ("im_end", "img", "endoftext")]
    seen = []

    def first_scores(scores, ids):
        seen.append(scores.clone())
        return scores.argmax(dim=-1)

    written = generate_tokens(
        model, *inputs(cases, case), max_new_tokens=12, stop_ids=stop, suppress_ids=stop, sample=first_scores
    )
    assert written == [cases[f"{case}/greedy_new_tokens"].tolist()]
    expected = cases[f"{case}/greedy_logits_first"].clone()
    expected[stop] = float("-inf")
    finite = expected.isfinite()
    assert difference(seen[0][0][finite], expected[finite]) <= 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_writes_what_single_prompts_write(model, cases, side):
    ids, mask, pixels, grid = inputs(cases, "batch2")
    lengths = mask.sum(dim=1).tolist()
    patches = grid.prod(dim=1).tolist()
    singles = []
    for row, (image, place) in enumerate(zip(pixels.split(patches), grid.split(1))):
        length = lengths[row]
        arguments = (ids[row : row + 1, :length], mask[row : row + 1, :length], image, place)
        singles += generate_tokens(model, *arguments, max_new_tokens=8, stop_ids=())
    if side == "left":
        shifts = [ids.shape[1] - length for length in lengths]
        ids = torch.stack([row.roll(shift) for row, shift in zip(ids, shifts)])
        mask = torch.stack([row.roll(shift) for row, shift in zip(mask, shifts)])
    assert generate_tokens(model, ids, mask, pixels, grid, max_new_tokens=8, stop_ids=()) == singles


def test_writing_ends_at_a_stop_token_and_reports_every_step(model, cases):
    greedy = cases["img1/greedy_new_tokens"].tolist()
    steps = []
    stop = [SPECIAL[name] for name in ("im_end", "img", "endoftext")]
    written = generate_tokens(
        model, *inputs(cases, "img1"), max_new_tokens=12, stop_ids=[greedy[2]], suppress_ids=stop,
        on_token=lambda rows: steps.append(len(rows[0])),
    )  # fmt: skip
    assert written == [greedy[:3]]
    assert steps == [1, 2, 3]


@torch.no_grad()
def test_names_of_later_transformers_releases_load_too(weights, cases):
    renamed = {FACTS["names_4_52_and_later"][name]: value for name, value in weights.items()}
    assert set(renamed) == {to_later_name(name) for name in weights}
    model = build_mllm(FACTS["config"], dtype=torch.float32)
    load_mllm_state_dict(model, renamed)
    hidden = encode_text(model, cases["text/input_ids"], cases["text/attention_mask"])
    assert difference(hidden, cases["text/last_hidden"]) <= TOLERANCE


@torch.no_grad()
def test_a_nested_config_builds_the_same_model(weights, cases):
    flat = FACTS["config"]
    text = {name: value for name, value in flat.items() if name not in ("vision_config", "rope_theta", "rope_scaling")}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": flat["rope_theta"], "mrope_section": [2, 3, 3]}
    nested = {"text_config": text, "vision_config": flat["vision_config"], "image_token_id": 1000}
    model = build_mllm(nested, dtype=torch.float32)
    load_mllm_state_dict(model, weights)
    ids, mask, pixels, grid = inputs(cases, "img2")
    assert difference(model(ids, mask, pixels, grid), cases["img2/last_hidden_full"]) <= TOLERANCE


@torch.no_grad()
def test_without_vision_weights_text_works_and_images_are_refused(weights, cases):
    model = build_mllm(FACTS["config"], dtype=torch.float32)
    load_mllm_state_dict(model, {name: value for name, value in weights.items() if not name.startswith("visual.")})
    assert not model.has_vision
    hidden = encode_text(model, cases["text/input_ids"], cases["text/attention_mask"])
    assert difference(hidden, cases["text/last_hidden"]) <= TOLERANCE
    with pytest.raises(CheckpointError, match="visual"):
        encode_with_images(model, *inputs(cases, "img1"))


@torch.no_grad()
def test_casting_the_module_does_not_round_the_rotary_frequencies(weights, cases):
    model = build_mllm(FACTS["config"], dtype=torch.float32)
    load_mllm_state_dict(model, weights)
    model.to(torch.bfloat16).to(torch.float32)
    model.load_state_dict(weights)
    ids, mask, pixels, grid = inputs(cases, "img2")
    assert difference(model(ids, mask, pixels, grid), cases["img2/last_hidden_full"]) <= TOLERANCE


@torch.no_grad()
def test_bfloat16_stays_close(weights, cases):
    model = build_mllm(FACTS["config"], dtype=torch.bfloat16)
    load_mllm_state_dict(model, weights, dtype=torch.bfloat16)
    ids, mask, pixels, grid = inputs(cases, "img1")
    hidden, expected = model(ids, mask, pixels, grid), cases["img1/last_hidden_full"]
    assert hidden.dtype == torch.bfloat16
    assert ((hidden.float() - expected).norm() / expected.norm()).item() <= 3e-2


def test_compute_dtype_is_never_fp16_by_default():
    assert build_mllm(FACTS["config"], dtype=torch.float16).compute_dtype == torch.bfloat16
    assert build_mllm(FACTS["config"], dtype=torch.float8_e4m3fn).compute_dtype == torch.bfloat16
    assert build_mllm(FACTS["config"], dtype=torch.float16, compute_dtype=torch.float32).compute_dtype == torch.float32


def test_every_weight_sits_in_a_layer_of_the_given_operations():
    class Counted:
        Linear = type("Linear", (torch.nn.Linear,), {})
        Embedding = type("Embedding", (torch.nn.Embedding,), {})
        RMSNorm = type("RMSNorm", (torch.nn.RMSNorm,), {})
        Conv3d = type("Conv3d", (torch.nn.Conv3d,), {})

    model = build_mllm(FACTS["config"], operations=Counted, dtype=torch.bfloat16)
    kinds = (Counted.Linear, Counted.Embedding, Counted.RMSNorm, Counted.Conv3d)
    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    assert owners and all(isinstance(module, kinds) for module in owners)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert not list(model.buffers())


class CastOnUse:
    """Layers that store in any dtype and compute in that of their input, as a host's do."""

    class Linear(torch.nn.Linear):
        def forward(self, x):
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return torch.nn.functional.linear(x, self.weight.to(x.dtype), bias)

    class Embedding(torch.nn.Embedding):
        comfy_cast_weights = True

        def forward(self, ids, out_dtype=None):
            return torch.nn.functional.embedding(ids, self.weight.to(out_dtype))

    class RMSNorm(torch.nn.RMSNorm):
        def forward(self, x):
            return torch.nn.functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)

    class Conv3d(torch.nn.Conv3d):
        def forward(self, x):
            return self._conv_forward(x, self.weight.to(x.dtype), None)


@torch.no_grad()
def test_weights_stored_as_fp8_compute_in_the_dtype_asked_for(weights, cases):
    stored = {name: value.to(torch.float8_e4m3fn) for name, value in weights.items()}
    model = build_mllm(FACTS["config"], operations=CastOnUse, dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    load_mllm_state_dict(model, stored)
    assert {p.dtype for p in model.parameters()} == {torch.float8_e4m3fn}
    rounded = build_mllm(FACTS["config"], dtype=torch.float32)
    load_mllm_state_dict(rounded, stored, dtype=torch.float32)
    arguments = inputs(cases, "img2")
    assert difference(model(*arguments), rounded(*arguments)) <= 1e-5
    written = [generate_tokens(m, *arguments, max_new_tokens=6, stop_ids=()) for m in (model, rounded)]
    assert written[0] == written[1]


@torch.no_grad()
@pytest.mark.parametrize("operations", [torch.nn, CastOnUse], ids=["plain layers", "layers that cast"])
def test_a_tied_output_projection_is_the_table_where_that_lies_ready(weights, operations):
    model = build_mllm(FACTS["config"], operations=operations, dtype=torch.float32)
    load_mllm_state_dict(model, weights)
    table, device = model.model.embed_tokens, torch.device("cpu")
    assert model.head_weight(device) is table.weight
    changed = table.register_forward_hook(lambda module, given, rows: rows + 1)
    torch.testing.assert_close(model.head_weight(device), table.weight + 1)
    changed.remove()
    table.weight_function = [torch.neg]
    assert model.head_weight(device) is not table.weight


@torch.no_grad()
def test_a_tied_output_projection_that_is_stored_otherwise_comes_in_the_compute_dtype(weights):
    model = build_mllm(FACTS["config"], operations=CastOnUse, dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    load_mllm_state_dict(model, {name: value.to(torch.float8_e4m3fn) for name, value in weights.items()})
    head = model.head_weight(torch.device("cpu"))
    assert head.dtype == torch.bfloat16 and torch.equal(head, model.model.embed_tokens.weight.to(torch.bfloat16))


@torch.no_grad()
def test_nothing_is_computed_in_float64_complex_or_fp8(model, cases):
    absent = {torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            for tensor in pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    assert tensor.dtype not in absent, function
            return result

    with Watch():
        encode_with_images(model, *inputs(cases, "batch2"))
        generate_tokens(model, *inputs(cases, "img1"), max_new_tokens=2, stop_ids=())


def test_full_size_parameters_equal_the_published_lists():
    published = json.loads((GOLDEN / "real_keys.json").read_text())
    model = build_mllm(PUBLISHED_MLLM, dtype=torch.bfloat16)
    for key, later in (("qwen25_vl_3b_transformers_4_51", False), ("qwen25_vl_3b_transformers_5_in_memory", True)):
        expected = {name: tuple(shape) for name, shape in published[key].items()}
        assert parameter_shapes(model, later_names=later) == expected


def test_an_untied_output_projection_is_loaded(weights, cases):
    config = dict(FACTS["config"], tie_word_embeddings=False)
    model = build_mllm(config, dtype=torch.float32)
    load_mllm_state_dict(model, weights | {"lm_head.weight": torch.zeros(1024, 64)})
    assert not model.logits(torch.ones(1, 64)).any()


def test_a_wrong_number_of_images_is_refused(model, cases):
    ids, mask, pixels, grid = inputs(cases, "img2")
    with pytest.raises(PromptError, match="more images than the 1"):
        rope_positions(ids, mask, grid[:1], image_token_id=SPECIAL["image"], merge_size=2)
    with pytest.raises(PromptError, match="places for only 2"):
        rope_positions(ids, mask, torch.cat([grid, grid[:1]]), image_token_id=SPECIAL["image"], merge_size=2)


@torch.no_grad()
def test_an_image_token_in_a_prompt_without_images_is_an_ordinary_token(model, cases):
    ids = cases["text/input_ids"][:1].clone()
    ids[0, 3] = SPECIAL["image"]
    positions, following = rope_positions(ids, torch.ones_like(ids), image_token_id=SPECIAL["image"], merge_size=2)
    assert positions[:, 0].tolist() == [list(range(12))] * 3 and following.tolist() == [12]
    assert encode_text(model, ids, torch.ones_like(ids)).isfinite().all()


def test_missing_weights_and_wrong_shapes_are_refused(weights):
    model = build_mllm(FACTS["config"], dtype=torch.float32)
    with pytest.raises(CheckpointError, match="lacks 1 weights .*model.norm.weight"):
        load_mllm_state_dict(model, {name: value for name, value in weights.items() if name != "model.norm.weight"})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_mllm_state_dict(model, weights | {"model.norm.weight": torch.ones(3)})


def test_another_models_config_is_refused():
    with pytest.raises(CheckpointError, match="'llama'"):
        MLLMConfig.from_dict({"model_type": "llama"})
    with pytest.raises(CheckpointError, match="vision_config.depth"):
        MLLMConfig.from_dict({name: value for name, value in FACTS["config"].items() if name != "vision_config"})
