"""Omni-RoPE: who gets which ids, and how they rotate."""

import math

import pytest
import torch

from omnigen2_core.rope import SampleLayout, batch_rotation, parts, position_ids, rotate, rotation


def test_text_counts_along_all_three_axes():
    ids = position_ids(SampleLayout(3, (), (1, 1)))
    assert ids[:3].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_each_image_gets_its_own_sequence_id_and_restarts_rows_and_columns():
    ids = position_ids(SampleLayout(4, ((2, 3), (1, 2)), (2, 1))).tolist()
    first = [[4, 0, 0], [4, 0, 1], [4, 0, 2], [4, 1, 0], [4, 1, 1], [4, 1, 2]]
    second = [[7, 0, 0], [7, 0, 1]]
    image = [[9, 0, 0], [9, 1, 0]]
    assert ids[4:] == first + second + image


def test_layout_knows_where_everything_starts():
    layout = SampleLayout(4, ((2, 3), (1, 2)), (2, 1))
    assert layout.reference_starts == (4, 10)
    assert (layout.image_start, layout.image_tokens, layout.length) == (12, 2, 14)
    assert len(position_ids(layout)) == layout.length


def test_rotation_angles_are_id_times_frequency_axis_after_axis():
    cos, sin = rotation(torch.tensor([[3, 5, 7]]), (4, 2, 4))
    angles = [3.0, 3 / 100.0, 5.0, 7.0, 7 / 100.0]
    assert cos[0].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-7)
    assert sin[0].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-7)
    assert cos.dtype is sin.dtype is torch.float32


def test_large_ids_keep_full_precision():
    cos, _ = rotation(torch.tensor([[100_003, 0, 0]]), (2, 2, 2))
    assert cos[0, 0].item() == pytest.approx(math.cos(100_003), abs=1e-7)


def test_neighbouring_dimensions_form_a_pair():
    table = rotation(torch.tensor([[1, 0, 0]]), (2, 2, 2))
    x = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 6)
    turned = rotate(x, tuple(t[None] for t in table)).flatten().tolist()
    assert turned == pytest.approx([math.cos(1), math.sin(1), 1, 0, 0, 1], abs=1e-7)


def test_rotation_keeps_dtype_and_length():
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    cos, sin = rotation(torch.arange(15).view(5, 3), (2, 2, 2))
    turned = rotate(x, (cos[None], sin[None]))
    assert turned.dtype is x.dtype
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    assert rotate(x.bfloat16(), (cos[None], sin[None])).dtype is torch.bfloat16


def test_equal_layouts_share_one_table_and_others_are_padded_behind():
    short, long = SampleLayout(1, (), (1, 2)), SampleLayout(3, (), (1, 2))
    assert batch_rotation((short, short), (2, 2, 2), "cpu")[0].shape == (1, 3, 3)
    cos, sin = batch_rotation((short, long), (2, 2, 2), "cpu")
    assert cos.shape == sin.shape == (2, 5, 3)
    want = rotation(position_ids(short), (2, 2, 2))
    assert torch.equal(cos[0, :3], want[0]) and torch.equal(sin[0, :3], want[1])
    assert cos[0, 3:].eq(1).all() and sin[0, 3:].eq(0).all()


def test_parts_cuts_each_samples_own_tokens():
    layouts = (SampleLayout(1, (), (2, 2)), SampleLayout(3, (), (2, 2)))
    table = batch_rotation(layouts, (2, 2, 2), "cpu")
    cos, _ = parts(table, [(0, 1), (1, 3)], 4)
    assert torch.equal(cos[0], table[0][0, 1:5]) and torch.equal(cos[1], table[0][1, 3:7])
    shared = batch_rotation(layouts[:1] * 2, (2, 2, 2), "cpu")
    assert parts(shared, [(0, 1), (1, 1)], 4)[0].shape == (1, 4, 3)
