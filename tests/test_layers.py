"""The blocks compute what the paper's formulas say."""

import pytest
import torch
from torch.nn.functional import rms_norm, silu

from omnigen2_core.layers import Attention, FeedForward, ModulatedBlock, PlainBlock, sinusoid
from omnigen2_core.precision import Precision
from omnigen2_core.rope import rotation

WIDTH, HEADS, KV_HEADS, INNER, TIME = 24, 4, 2, 40, 10
PLAIN = Precision(torch.float32)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def table(length):
    return tuple(t[None] for t in rotation(torch.arange(length)[:, None].expand(-1, 3), (2, 2, 2)))


def redraw(module):
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
    return module


def test_feed_forward_gates_with_silu():
    ff = redraw(FeedForward(WIDTH, INNER, operations=torch.nn))
    x = torch.randn(2, 3, WIDTH)
    want = (silu(x @ ff.linear_1.weight.T) * (x @ ff.linear_3.weight.T)) @ ff.linear_2.weight.T
    assert torch.allclose(ff(x, PLAIN), want, atol=1e-5)


def test_modulated_block_has_sandwich_norms_scales_and_tanh_gates():
    block = redraw(ModulatedBlock(WIDTH, HEADS, KV_HEADS, INNER, TIME, 1e-5, operations=torch.nn))
    x, temb, rope = torch.randn(2, 5, WIDTH), torch.randn(2, TIME), table(5)
    e = silu(temb) @ block.norm1.linear.weight.T + block.norm1.linear.bias
    scale_msa, gate_msa, scale_mlp, gate_mlp = (part[:, None] for part in e.chunk(4, dim=1))

    def norm(value, module):
        return rms_norm(value, (WIDTH,), module.weight, 1e-5)

    attended = block.attn(norm(x, block.norm1.norm) * (1 + scale_msa), rope, None, PLAIN)
    want = x + gate_msa.tanh() * norm(attended, block.norm2)
    fed = block.feed_forward(norm(want, block.ffn_norm1) * (1 + scale_mlp), PLAIN)
    want = want + gate_mlp.tanh() * norm(fed, block.ffn_norm2)
    got = block(x, block.modulation(temb, PLAIN), rope, None, PLAIN)
    assert torch.allclose(got, want, atol=1e-5)


def test_plain_block_is_the_modulated_one_with_scales_zero_and_gates_one():
    plain = redraw(PlainBlock(WIDTH, HEADS, KV_HEADS, INNER, 1e-5, operations=torch.nn))
    modulated = ModulatedBlock(WIDTH, HEADS, KV_HEADS, INNER, TIME, 1e-5, operations=torch.nn)
    weights = plain.state_dict()
    weights["norm1.norm.weight"] = weights.pop("norm1.weight")
    modulated.load_state_dict(weights, strict=False)
    x, one = torch.randn(1, 5, WIDTH), torch.ones(1, 1, WIDTH)
    got = plain(x, table(5), None, PLAIN)
    assert torch.allclose(got, modulated(x, (one, one, one, one), table(5), None, PLAIN), atol=1e-6)


def test_neighbouring_query_heads_share_a_key_value_head():
    attention = redraw(Attention(WIDTH, HEADS, KV_HEADS, operations=torch.nn))
    x, rope, head = torch.randn(1, 5, WIDTH), table(5), WIDTH // HEADS
    grouped = attention(x, rope, None, PLAIN)
    repeated = Attention(WIDTH, HEADS, HEADS, operations=torch.nn)
    weights = dict(attention.state_dict())
    for name in ("to_k.weight", "to_v.weight"):
        weights[name] = weights[name].view(KV_HEADS, head, WIDTH).repeat_interleave(HEADS // KV_HEADS, 0).flatten(0, 1)
    repeated.load_state_dict(weights)
    assert torch.allclose(grouped, repeated(x, rope, None, PLAIN), atol=1e-5)


def test_masked_keys_are_not_seen():
    attention = redraw(Attention(WIDTH, HEADS, KV_HEADS, operations=torch.nn))
    x = torch.randn(1, 6, WIDTH)
    mask = (torch.arange(6) < 4).view(1, 1, 1, 6)
    full = attention(x, table(6), mask, PLAIN)[:, :4]
    assert torch.allclose(full, attention(x[:, :4], table(4), None, PLAIN), atol=1e-5)


def test_sinusoid_puts_cosines_first_and_multiplies_in_the_references_order():
    time = torch.tensor([0.0, 0.9975])
    wave = sinusoid(time, 256, 1000.0)
    assert wave.dtype is torch.float32
    assert wave[0, :128].eq(1).all() and wave[0, 128:].eq(0).all()
    frequency = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    assert torch.allclose(wave[1, :128], ((time[1] * frequency) * 1000).cos(), atol=2e-4)


def test_the_time_embedding_does_not_round_time_to_the_models_dtype():
    assert not torch.equal(sinusoid(torch.tensor([0.999]), 256, 1000.0), sinusoid(torch.tensor([1.0]), 256, 1000.0))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_block_compiles_without_graph_breaks_or_a_new_compilation_for_each_pass(dynamic):
    block = redraw(ModulatedBlock(WIDTH, HEADS, KV_HEADS, INNER, TIME, 1e-5, operations=torch.nn))
    torch._dynamo.reset()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    fast = torch.compile(block, backend=backend, fullgraph=True, dynamic=dynamic)
    for length in (5, 7, 11, 13) if dynamic else (5, 5, 5):
        x, temb = torch.randn(1, length, WIDTH), torch.randn(1, TIME)
        precision = Precision(torch.float32)
        modulation = block.modulation(temb, precision)
        got = fast(x, modulation, table(length), None, precision)
        assert torch.allclose(got, block(x, modulation, table(length), None, precision), atol=1e-6)
    assert len(compiled) == 1
