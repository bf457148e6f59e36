"""The DiT's building blocks: attention with grouped heads, gated feed-forward, modulated block, time embedding.

`operations` is a namespace of layer classes (torch.nn, or a host's) that provides Linear, RMSNorm and LayerNorm.
Every module takes the `Precision` of the pass and holds no state but its weights.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .precision import Precision
from .rope import Rotation

HEAD_NORM_EPS = 1e-5
Modulation = tuple[Tensor, Tensor, Tensor, Tensor]
KeysValues = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Exchanges the keys and values of a layer's own tokens, [B, KV, S, hd] each, for those that its queries see."""


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
        """x [B, S, width] -> [B, S, width]."""
        return self.project_out(precision.attend(*self.project_in(x, table, precision), mask), precision)

    def project_in(self, x: Tensor, table: Rotation, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, S, hd], keys and values [B, KV, S, hd] of x [B, S, width]."""
        return self._heads(precision.linear(x, self.to_q, self.to_k, self.to_v), table, table, precision)

    def project_in_for(
        self, x: Tensor, table: Rotation, first: int, count: int, precision: Precision
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with queries of some tokens only: `count` of them from `first` on."""
        projected = precision.linear(x.narrow(1, first, count), self.to_q) + precision.linear(x, self.to_k, self.to_v)
        own_table = table[0].narrow(1, first, count), table[1].narrow(1, first, count)
        return self._heads(projected, own_table, table, precision)

    def _heads(self, projected: list[Tensor], own_table: Rotation, table: Rotation, precision: Precision):
        q, k, v = (y.unflatten(-1, (-1, self.head)) for y in projected)
        q = precision.turned_heads(q, self.norm_q, own_table)
        k = precision.turned_heads(k, self.norm_k, table)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def project_out(self, attended: Tensor, precision: Precision) -> Tensor:
        """[B, S, width] of what the queries have found, [B, H, S, hd]."""
        return precision.linear(attended.transpose(1, 2).flatten(2), self.to_out[0])[0]


class FeedForward(nn.Module):
    """SwiGLU: linear_2(silu(linear_1(x)) * linear_3(x))."""

    def __init__(self, width: int, inner: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"bias": False, "dtype": dtype, "device": device}
        self.linear_1 = operations.Linear(width, inner, **kw)
        self.linear_2 = operations.Linear(inner, width, **kw)
        self.linear_3 = operations.Linear(width, inner, **kw)

    def forward(self, x: Tensor, precision: Precision) -> Tensor:
        return precision.linear(precision.gated(x, self.linear_1, self.linear_3), self.linear_2)[0]


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
        """What the block's attention sees of x [B, S, width]; it lasts as `Precision.scaled_norm` says."""
        return precision.scaled_norm(x, self.norm1.norm, modulation[0])

    def forward(
        self,
        x: Tensor,
        modulation: Modulation,
        table: Rotation,
        mask: Tensor | None,
        precision: Precision,
        keys_values: KeysValues | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """x [B, S, width] in the stream dtype; modulation as the method of that name gives it.

        rows: the output of these tokens only, which see all of them.
        """
        if rows is None:
            q, k, v = precision.part(ModulatedBlock.before_attention, self, x, modulation, table)
        else:
            own = rows.start, rows.stop - rows.start
            q, k, v = precision.part(ModulatedBlock.before_attention_for, self, x, modulation, table, *own)
            # Tokens among others lie differently from all tokens, for which a compiled graph would be made anew.
            x = x[:, rows].clone(memory_format=torch.contiguous_format)
        if keys_values is not None:
            k, v = keys_values(k, v)
        attended = precision.attend(q, k, v, mask)
        return precision.part(ModulatedBlock.after_attention, self, x, attended, modulation)

    def before_attention(
        self, x: Tensor, modulation: Modulation, table: Rotation, precision: Precision
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as `Attention.project_in` gives them."""
        return self.attn.project_in(self.modulated_input(x, modulation, precision), table, precision)

    def before_attention_for(
        self, x: Tensor, modulation: Modulation, table: Rotation, first: int, count: int, precision: Precision
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as `Attention.project_in_for` gives them. It is a function of its own, with plain
        numbers, because a compiled graph would take the places in a slice for constants.
        """
        return self.attn.project_in_for(self.modulated_input(x, modulation, precision), table, first, count, precision)

    def after_attention(self, x: Tensor, attended: Tensor, modulation: Modulation, precision: Precision) -> Tensor:
        """x [B, S, width] after the block, from what its queries have found, [B, H, S, hd]."""
        _, gate_msa, scale_mlp, gate_mlp = modulation
        x = precision.add_normed(x, self.attn.project_out(attended, precision), self.norm2, gate_msa)
        fed = self.feed_forward(precision.scaled_norm(x, self.ffn_norm1, scale_mlp), precision)
        return precision.add_normed(x, fed, self.ffn_norm2, gate_mlp)


class PlainBlock(nn.Module):
    """The same block without modulation, as the text refiner uses it."""

    def __init__(self, width, heads, kv_heads, inner, eps, *, operations, dtype=None, device=None):
        super().__init__()
        kw = {"operations": operations, "dtype": dtype, "device": device}
        self.norm1 = operations.RMSNorm(width, eps=eps, dtype=dtype, device=device)
        _add_block_parts(self, width, heads, kv_heads, inner, eps, **kw)

    def forward(self, x: Tensor, table: Rotation, mask: Tensor | None, precision: Precision) -> Tensor:
        q, k, v = precision.part(PlainBlock.before_attention, self, x, table)
        return precision.part(PlainBlock.after_attention, self, x, precision.attend(q, k, v, mask))

    def before_attention(self, x: Tensor, table: Rotation, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as `Attention.project_in` gives them."""
        return self.attn.project_in(precision.scaled_norm(x, self.norm1, None), table, precision)

    def after_attention(self, x: Tensor, attended: Tensor, precision: Precision) -> Tensor:
        """x [B, S, width] after the block, from what its queries have found, [B, H, S, hd]."""
        x = precision.add_normed(x, self.attn.project_out(attended, precision), self.norm2, None)
        fed = self.feed_forward(precision.scaled_norm(x, self.ffn_norm1, None), precision)
        return precision.add_normed(x, fed, self.ffn_norm2, None)


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
