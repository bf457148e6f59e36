"""A module's parameters can be the tensors of a file themselves: which are, which have to be copies, and in what dtype."""

import pytest
import torch
from torch import nn

from omnigen2_core.checkpoints import as_parameters
from omnigen2_core.quantised import INT8, PackedTensor, packed_operations


def misaligned(values: torch.Tensor) -> torch.Tensor:
    """The same numbers one byte behind an address that fits their dtype."""
    buffer = torch.empty(values.nbytes + 1, dtype=torch.uint8)
    place = torch.frombuffer(buffer.numpy(), dtype=values.dtype, offset=1, count=values.numel()).view(values.shape)
    return place.copy_(values)


def test_a_tensor_that_fits_is_taken_itself():
    state = {"weight": torch.randn(2, 2), "bias": torch.randn(2)}
    given = as_parameters(nn.Linear(2, 2), state)
    assert all(given[name] is tensor for name, tensor in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_than_the_parameters_is_converted_as_copying_would(dtype):
    layer, copied = nn.Linear(2, 2), nn.Linear(2, 2)
    state = {"weight": torch.randn(2, 2, dtype=dtype), "bias": torch.randn(2, dtype=dtype)}
    layer.load_state_dict(as_parameters(layer, state), assign=True)
    copied.load_state_dict(state)
    assert torch.equal(layer.weight, copied.weight) and layer.weight.dtype is torch.float32


def test_numbers_at_an_address_that_does_not_fit_are_copied_to_one_that_does():
    values = torch.randn(2, 2)
    odd = misaligned(values)
    assert odd.data_ptr() % 4
    given = as_parameters(nn.Linear(2, 2, bias=False), {"weight": odd})["weight"]
    assert torch.equal(given, values) and given.data_ptr() % 4 == 0


def test_bytes_fit_everywhere():
    layer = nn.Linear(2, 2, bias=False).to(torch.float8_e4m3fn)
    odd = misaligned(torch.randn(2, 2).to(torch.float8_e4m3fn).view(torch.uint8)).view(torch.float8_e4m3fn)
    assert as_parameters(layer, {"weight": odd})["weight"] is odd


def test_packed_weights_stay_packed_where_the_layer_takes_them_and_become_numbers_elsewhere():
    packed = PackedTensor.from_rows(torch.ones(2, 2, dtype=torch.int8), None, INT8)
    taking, other = packed_operations(nn).Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    given = as_parameters(nn.Sequential(taking, other), {"0.weight": packed, "1.weight": packed})
    assert given["0.weight"] is packed
    assert given["1.weight"].dtype is torch.bfloat16


def test_what_the_module_has_no_parameter_for_is_left_to_it():
    scale = torch.ones((), dtype=torch.float64)
    assert as_parameters(nn.Linear(2, 2), {"weight_scale": scale})["weight_scale"] is scale
