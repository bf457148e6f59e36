"""Formats of few bits: the numbers in them, a tensor kept in one, and layers that compute with it."""

import copy

import gguf
import numpy as np
import pytest
import torch
from make_gguf import blocks
from torch import nn
from torch.nn.functional import linear

from omnigen2_core.quantised import (
    FP8,
    GGUF_FORMATS,
    INT8,
    PackedTensor,
    holds_packed,
    operations_for,
    packed_operations,
    unpack_elsewhere,
)

WRITTEN = [name for name, entry in GGUF_FORMATS.items() if entry.encode]
# Relative errors of normally distributed numbers: half a step of a grid that spans about five deviations.
LARGEST_ERROR = {"Q8_0": 0.008, "Q6_K": 0.02, "Q5_K": 0.04, "Q5_0": 0.05, "Q4_K": 0.08, "Q4_0": 0.1}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed(format="Q4_K", shape=(64, 96), seed=0):
    """A matrix in a block format, flattened where its rows do not divide, and the numbers it is read as."""
    entry = GGUF_FORMATS[format]
    tensor = PackedTensor.from_blocks(entry.encode(draw(*shape, seed=seed).reshape(-1, entry.values)), entry, shape)
    return tensor, tensor.numbers()


# The formats


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_blocks_are_read_as_the_gguf_package_reads_them(name):
    entry, raw = GGUF_FORMATS[name], blocks(name)
    kind = gguf.GGMLQuantizationType[name]
    assert gguf.GGML_QUANT_SIZES[kind] == (entry.values, entry.size)
    assert np.array_equal(entry.decode(raw).numpy(), gguf.quants.dequantize(raw.numpy(), kind))


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q4_0"])
def test_blocks_are_written_as_the_gguf_package_writes_them(name):
    numbers = draw(200, 32) * draw(200, 1, seed=1)
    numbers[0], numbers[1] = 0, 1
    expected = gguf.quants.quantize(numbers.numpy(), gguf.GGMLQuantizationType[name])
    assert np.array_equal(GGUF_FORMATS[name].encode(numbers).numpy(), expected)


@pytest.mark.parametrize("name", WRITTEN)
def test_numbers_come_back_nearly_as_they_were(name):
    entry = GGUF_FORMATS[name]
    numbers = draw(300, entry.values) * draw(300, 1, seed=1).exp() * 0.02
    back = entry.decode(entry.encode(numbers))
    assert ((back - numbers).norm(dim=1) / numbers.norm(dim=1)).amax() < 1.6 * LARGEST_ERROR[name]
    assert (back - numbers).norm() / numbers.norm() < LARGEST_ERROR[name]


@pytest.mark.parametrize("name", ["Q6_K", "Q5_K", "Q4_K"])
def test_what_has_been_rounded_once_stays_nearly_as_it_is(name):
    entry = GGUF_FORMATS[name]
    once = entry.decode(entry.encode(draw(50, 256)))
    again = entry.decode(entry.encode(once))
    assert (again - once).norm() / once.norm() < 0.25 * LARGEST_ERROR[name]


@pytest.mark.parametrize("name", WRITTEN)
def test_odd_blocks_are_written_too(name):
    entry = GGUF_FORMATS[name]
    numbers = torch.zeros(6, entry.values)
    numbers[1] = 0.5
    numbers[2] = -0.5
    numbers[3, 7] = 3.0
    numbers[4] = draw(entry.values).abs() + 5
    numbers[5] = draw(entry.values) * 1e-7
    back = entry.decode(entry.encode(numbers))
    assert back.isfinite().all()
    assert (back[0] == 0).all()
    assert (back - numbers).abs().amax(1).le(0.13 * numbers.abs().amax(1) + 1e-6).all()


# A packed tensor


def test_it_has_the_shape_of_its_numbers_and_the_size_of_its_blocks():
    tensor, _ = packed("Q4_K", (64, 96))
    assert tensor.shape == (64, 96) and tensor.numel() == 64 * 96 and tensor.ndim == 2
    assert tensor.nbytes == 64 * 96 // 256 * 144
    assert not tensor.is_floating_point()


@pytest.mark.parametrize("inference", [False, True])
def test_dtypes_give_numbers_and_devices_do_not(inference):
    tensor, numbers = packed()
    with torch.inference_mode(inference):
        assert torch.equal(tensor.to(torch.bfloat16), numbers.to(torch.bfloat16))
        assert type(tensor.float()) is torch.Tensor
        for moved in (tensor.to("cpu"), tensor.to("cpu", copy=True), tensor.clone(), tensor.detach(), copy.deepcopy(tensor)):
            assert isinstance(moved, PackedTensor) and torch.equal(moved.numbers(), numbers)
        parameter = nn.Parameter(tensor, requires_grad=False)
        assert isinstance(parameter, PackedTensor) and isinstance(parameter, nn.Parameter)
        into = torch.empty_like(tensor, dtype=torch.float32)
        assert torch.equal(into.copy_(tensor), numbers)


def test_other_operations_get_numbers_and_writing_is_refused():
    tensor, numbers = packed()
    assert torch.equal(tensor * 2, numbers * 2)
    assert torch.equal(linear(draw(3, 96), tensor), linear(draw(3, 96), numbers))
    with pytest.raises(TypeError, match="write into a weight kept as Q4_K"):
        tensor.mul_(2)
    with pytest.raises(TypeError, match="takes only another one"):
        tensor.copy_(numbers)
    assert torch.equal(tensor.numbers(), numbers)


def test_changes_follow_whenever_numbers_are_asked_for():
    tensor, numbers = packed()
    changed = tensor.followed_by(lambda weight: weight + 1).followed_by(lambda weight: weight * 2)
    assert torch.equal(changed.to("cpu", copy=True).numbers(), (numbers + 1) * 2)
    assert torch.equal(tensor.numbers(), numbers)
    assert changed.parts[0].data_ptr() == tensor.parts[0].data_ptr()


@pytest.mark.parametrize("shape", [(40, 512), (64, 96)], ids=["rows of blocks", "flattened"])
def test_rows_are_those_of_the_whole(shape):
    tensor, numbers = packed("Q5_K", shape)
    ids = torch.tensor([[0, 7], [39, 7]])
    assert torch.equal(tensor.rows(ids), numbers[ids])
    assert torch.equal(tensor.followed_by(lambda weight: -weight).rows(ids), -numbers[ids])


def test_large_tensors_are_decoded_in_chunks(monkeypatch):
    tensor, numbers = packed("Q8_0", (60, 96))
    monkeypatch.setattr("omnigen2_core.quantised.tensor.CHUNK", 1000)
    assert torch.equal(tensor.numbers(), numbers)


@pytest.mark.parametrize("scale", ["none", "one", "rows"])
@pytest.mark.parametrize("format, dtype", [(FP8, torch.float8_e4m3fn), (INT8, torch.int8)])
def test_fp8_and_int8_carry_their_scales(format, dtype, scale):
    values = (draw(8, 12) * 20).round().to(dtype)
    scales = {"none": None, "one": torch.tensor(0.5), "rows": draw(8, 1).abs()}[scale]
    tensor = PackedTensor.from_rows(values, scales, format)
    assert torch.equal(tensor.numbers(), values.float() * (1 if scales is None else scales))
    assert torch.equal(tensor.rows(torch.tensor([3, 3])), tensor.numbers()[[3, 3]])


# Layers


@pytest.fixture
def layer():
    weight, _ = packed()
    made = packed_operations().Linear(96, 64)
    made.load_state_dict({"weight": weight, "bias": draw(64, seed=2)})
    return made


def test_a_linear_layer_computes_with_the_numbers(layer):
    x = draw(3, 96, seed=3)
    assert torch.equal(layer(x), linear(x, layer.weight.numbers(), layer.bias))
    expected = linear(x.bfloat16(), layer.weight.numbers(torch.bfloat16), layer.bias.bfloat16())
    assert torch.equal(layer(x.bfloat16()), expected)


def test_what_a_host_adds_while_a_weight_is_cast_leaves_the_layer_as_it_is(layer):
    """As ComfyUI patches the layers of a model that is loaded in part."""
    x, plain = draw(3, 96, seed=3), layer(draw(3, 96, seed=3))
    weight, bias = layer.weight.numbers() + 1, layer.bias * 2
    layer.weight_function = [lambda numbers: numbers.add_(1)]
    layer.bias_function = [lambda numbers: numbers.mul_(2)]
    for _ in range(2):
        assert torch.equal(layer(x), linear(x, weight, bias))
    layer.weight_function, layer.bias_function = [], []
    assert torch.equal(layer(x), plain)


def test_moving_a_module_leaves_weights_packed(layer):
    module = nn.Sequential(layer, nn.LayerNorm(64)).to(torch.bfloat16).to("cpu").eval().requires_grad_(False)
    assert isinstance(module[0].weight, PackedTensor)
    assert module[0].bias.dtype is module[1].weight.dtype is torch.bfloat16
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()}["0.weight"] == (64, 96)


def test_a_layer_takes_plain_weights_as_well():
    made = packed_operations().Linear(4, 3)
    weights = {"weight": draw(3, 4).half(), "bias": draw(3)}
    made.load_state_dict(weights)
    assert made.weight.dtype is torch.float32
    assert torch.allclose(made(draw(2, 4)), linear(draw(2, 4), weights["weight"].float(), weights["bias"]))


def test_an_embedding_reads_rows():
    weight, numbers = packed("Q6_K", (40, 512))
    table = packed_operations().Embedding(40, 512)
    table.load_state_dict({"weight": weight})
    ids = torch.tensor([[1, 39, 1]])
    assert torch.equal(table(ids), numbers[ids])
    assert table(ids, out_dtype=torch.bfloat16).dtype is torch.bfloat16


def test_weights_that_do_not_fit_are_named():
    weight, _ = packed()
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \[64, 96\] where \[96, 64\]"):
        packed_operations().Linear(64, 96).load_state_dict({"weight": weight, "bias": draw(96)})
    with pytest.raises(RuntimeError, match="Missing key.*bias"):
        packed_operations().Linear(96, 64).load_state_dict({"weight": weight})
    with pytest.raises(RuntimeError, match="Unexpected key.*scale"):
        packed_operations().Linear(96, 64, bias=False).load_state_dict({"weight": weight, "scale": draw(1)})


def test_what_no_layer_takes_packed_becomes_numbers():
    ops = packed_operations()
    weight, numbers = packed()
    module = nn.ModuleDict({"matrix": ops.Linear(96, 64, bias=False), "plain": nn.Linear(96, 64, bias=False)})
    out = unpack_elsewhere(module, {"matrix.weight": weight, "plain.weight": weight})
    assert out["matrix.weight"] is weight
    assert torch.equal(out["plain.weight"], numbers)


def test_only_packed_weights_call_for_other_layers():
    weight, numbers = packed()
    assert operations_for({"weight": numbers}) is nn and not holds_packed({"weight": numbers})
    assert operations_for({"weight": weight}) is not nn


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_layer_gives_the_same(layer, backend):
    x = draw(3, 96, seed=3)
    torch._dynamo.reset()
    layer.weight = nn.Parameter(layer.weight.followed_by(lambda weight: weight + 1), requires_grad=False)
    assert torch.allclose(torch.compile(layer, backend=backend)(x), layer(x))
