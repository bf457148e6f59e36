"""The DiT's building blocks: attention with grouped heads, gated feed-forward, modulated block, time embedding.

`operations` is a namespace of layer classes (torch.nn, or a host's) that provides Linear, RMSNorm and LayerNorm.
Every module takes the `Precision` of the pass and holds no state but its weights.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .precision import Precision
from .rope import Rotation, rotate

HEAD_NORM_EPS = 1e-5
Modulation = tuple[Tensor, Tensor, Tensor, Tensor]


class Attention(nn.Module):
    """Bidirectional self-attention; `heads` query heads share `kv_heads` key and value heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        head = width // heads
        self.head = head
        self.to_q = operations.Linear(width, heads * head, bias=False, **kw)
        self.to_k = operations.Linear(width, kv_heads * head, bias=False, **kw)
        self.to_v = operations.Linear(width, kv_heads * head, bias=False, **kw)
        self.to_out = nn.ModuleList([operations.Linear(heads * head, width, bias=False, **kw)])
        self.norm_q = operations.RMSNorm(head, eps=HEAD_NORM_EPS, **kw)
        self.norm_k = operations.RMSNorm(head, eps=HEAD_NORM_EPS, **kw)

    def forward(self, x: Tensor, table: Rotation, mask: Tensor | None, precision: Precision) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, self.head)) for y in precision.linear(x, self.to_q, self.to_k, self.to_v))
        q = rotate(precision.norm(q, self.norm_q), table)
        k = rotate(precision.norm(k, self.norm_k), table)
        out = precision.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return precision.linear(out.transpose(1, 2).flatten(2), self.to_out[0])[0]


class FeedForward(nn.Module):
    """SwiGLU: linear_2(silu(linear_1(x)) * linear_3(x))."""

    def __init__(self, width: int, inner: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"bias": False, "dtype": dtype, "device": device}
        self.linear_1 = operations.Linear(width, inner, **kw)
        self.linear_2 = operations.Linear(inner, width, **kw)
        self.linear_3 = operations.Linear(width, inner, **kw)

    def forward(self, x: Tensor, precision: Precision) -> Tensor:
        gate, value = precision.linear(x, self.linear_1, self.linear_3)
        return precision.linear(silu(gate) * value, self.linear_2)[0]


class ModulatedNorm(nn.Module):
    """RMSNorm with the projection that turns the time embedding into the block's scales and gates."""

    def __init__(self, width: int, time_width: int, eps: float, *, operations, dtype=None, device=None):
        super().__init__()
        self.linear = operations.Linear(time_width, 4 * width, dtype=dtype, device=device)
        self.norm = operations.RMSNorm(width, eps=eps, dtype=dtype, device=device)

    def modulation(self, temb: Tensor, precision: Precision) -> Modulation:
        """(1 + scale_msa, tanh gate_msa, 1 + scale_mlp, tanh gate_mlp), each [B, 1, width], from temb [B, T]."""
        e = precision.affine(silu(temb).unsqueeze(1), self.linear)
        scale_msa, gate_msa, scale_mlp, gate_mlp = e.chunk(4, dim=-1)
        return 1 + scale_msa, gate_msa.tanh(), 1 + scale_mlp, gate_mlp.tanh()


class ModulatedBlock(nn.Module):
    """Transformer block with sandwich norms, scaled and gated by the time embedding."""

    def __init__(self, width, heads, kv_heads, inner, time_width, eps, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"operations": operations, "dtype": dtype, "device": device}
        self.norm1 = ModulatedNorm(width, time_width, eps, **kw)
        _add_block_parts(self, width, heads, kv_heads, inner, eps, **kw)

    def modulation(self, temb: Tensor, precision: Precision) -> Modulation:
        return self.norm1.modulation(temb, precision)

    def modulated_input(self, x: Tensor, modulation: Modulation, precision: Precision) -> Tensor:
        """What the block's attention sees of x [B, S, width]."""
        return precision.norm(x, self.norm1.norm) * modulation[0]

    def forward(
        self, x: Tensor, modulation: Modulation, table: Rotation, mask: Tensor | None, precision: Precision
    ) -> Tensor:
        """x [B, S, width] in the stream dtype; modulation as the method of that name gives it."""
        _, gate_msa, scale_mlp, gate_mlp = modulation
        attended = self.attn(self.modulated_input(x, modulation, precision), table, mask, precision)
        x = x + gate_msa * precision.norm(attended, self.norm2)
        fed = self.feed_forward(precision.norm(x, self.ffn_norm1) * scale_mlp, precision)
        return x + gate_mlp * precision.norm(fed, self.ffn_norm2)


class PlainBlock(nn.Module):
    """The same block without modulation, as the text refiner uses it."""

    def __init__(self, width, heads, kv_heads, inner, eps, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"operations": operations, "dtype": dtype, "device": device}
        self.norm1 = operations.RMSNorm(width, eps=eps, dtype=dtype, device=device)
        _add_block_parts(self, width, heads, kv_heads, inner, eps, **kw)

    def forward(self, x: Tensor, table: Rotation, mask: Tensor | None, precision: Precision) -> Tensor:
        x = x + precision.norm(self.attn(precision.norm(x, self.norm1), table, mask, precision), self.norm2)
        fed = self.feed_forward(precision.norm(x, self.ffn_norm1), precision)
        return x + precision.norm(fed, self.ffn_norm2)


def _add_block_parts(block: nn.Module, width, heads, kv_heads, inner, eps, *, operations, dtype, device) -> None:
    kw = {"dtype": dtype, "device": device}
    block.attn = Attention(width, heads, kv_heads, operations=operations, **kw)
    block.feed_forward = FeedForward(width, inner, operations=operations, **kw)
    for name in ("norm2", "ffn_norm1", "ffn_norm2"):
        setattr(block, name, operations.RMSNorm(width, eps=eps, **kw))


class TimestepEmbedding(nn.Module):
    """Time in 0..1 -> [B, T]: sinusoid of 256 values, then two layers."""

    SINUSOID = 256

    def __init__(self, time_width: int, scale: float, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.scale = scale
        self.linear_1 = operations.Linear(self.SINUSOID, time_width, **kw)
        self.linear_2 = operations.Linear(time_width, time_width, **kw)

    def forward(self, timestep: Tensor, precision: Precision) -> Tensor:
        x = sinusoid(timestep, self.SINUSOID, self.scale).to(precision.stream).unsqueeze(1)
        return precision.affine(silu(precision.affine(x, self.linear_1)), self.linear_2).squeeze(1)


def sinusoid(timestep: Tensor, width: int, scale: float) -> Tensor:
    """[B] -> [B, width] float32, cosines first. The order (t * frequency) * scale decides the last digits."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angle = (timestep.to(torch.float32)[:, None] * exponent.exp()) * scale
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimeCaptionEmbedding(nn.Module):
    """The published names for the time embedding and the text's entry into the model."""

    def __init__(self, width, time_width, text_width, scale, eps, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.timestep_embedder = TimestepEmbedding(time_width, scale, operations=operations, **kw)
        self.caption_embedder = nn.ModuleList(
            [operations.RMSNorm(text_width, eps=eps, **kw), operations.Linear(text_width, width, **kw)]
        )

    def time(self, timestep: Tensor, precision: Precision) -> Tensor:
        return self.timestep_embedder(timestep, precision)

    def caption(self, text: Tensor, precision: Precision) -> Tensor:
        norm, linear = self.caption_embedder
        return precision.affine(precision.norm(text, norm), linear)


class OutputLayer(nn.Module):
    """LayerNorm scaled by the time embedding, then the projection to patches."""

    def __init__(self, width: int, time_width: int, patch_width: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.linear_1 = operations.Linear(time_width, width, **kw)
        self.norm = operations.LayerNorm(width, eps=1e-6, elementwise_affine=False, **kw)
        self.linear_2 = operations.Linear(width, patch_width, **kw)

    def forward(self, x: Tensor, temb: Tensor, precision: Precision) -> Tensor:
        """x [B, S, width], temb [B, T] -> [B, S, patch_width]."""
        scale = precision.affine(silu(temb).unsqueeze(1), self.linear_1)
        return precision.affine(self.norm(x) * (1 + scale), self.linear_2)
