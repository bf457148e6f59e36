"""The bench's cases of memory, of runs in a row and of the start: what they count, plan and say."""

import json

import pytest
import torch
import torch.nn.functional as F

from omnigen2_core.bench import memory, runs, start
from omnigen2_core.bench.allocations import BLOCK, DEVICE, counting
from omnigen2_core.bench.full_size import PUBLISHED, write_sparse
from omnigen2_core.bench.report import to_json, to_markdown
from omnigen2_core.bench.results import MemoryRow, Results
from omnigen2_core.bench.verdict import FAILS, HOLDS
from omnigen2_core.checkpoints import FileKind, SingleFile
from omnigen2_core.checkpoints.published import PUBLISHED_TRANSFORMER

KB = 1024


# The counting device


def test_what_lives_is_counted_and_what_is_gone_is_not():
    with counting() as device:
        first = torch.zeros(KB, dtype=torch.bfloat16).to(DEVICE)
        part = first[: KB // 2]
        assert device.live == 2 * KB
        second = first.float() + 1
        assert (device.live, device.peak) == (2 * KB + 4 * KB, 2 * KB + 8 * KB)
        del first, second
        assert device.live == 2 * KB, "a part holds the whole of its memory"
        del part
        device.restart()
        assert (device.live, device.peak) == (0, 0)


def test_memory_is_given_out_in_blocks():
    with counting() as device:
        small = torch.ones(1, device=DEVICE)
        assert device.live == BLOCK
        del small


def test_beyond_the_limit_the_device_runs_out_of_memory():
    with counting(limit=10 * KB):
        kept = torch.ones(2 * KB, device=DEVICE)
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones_like(kept)


@pytest.mark.parametrize("inference", [True, False])
def test_attention_holds_no_scores(inference):
    with torch.inference_mode(inference), counting() as device:
        q = torch.empty(1, 2, KB, 64, dtype=torch.bfloat16, device=DEVICE)
        before = device.live
        device.restart()
        out = F.scaled_dot_product_attention(q, q, q)
        assert out.shape == q.shape and device.peak - before == q.nbytes


@pytest.mark.parametrize("inference", [True, False])
def test_a_feed_forward_holds_what_its_operations_give(inference):
    with torch.inference_mode(inference), counting() as device:
        x = torch.empty(1, KB, 64, device=DEVICE)
        wide, narrow = torch.empty(256, 64, device=DEVICE), torch.empty(64, 256, device=DEVICE)
        before = device.live
        device.restart()
        F.linear(F.silu(F.linear(x, wide)), narrow)
        assert device.peak - before == 2 * 4 * KB * 256


def test_small_tensors_keep_their_values_and_others_say_that_theirs_are_not_known():
    with counting():
        lengths = torch.tensor([3, 5]).to(DEVICE)
        assert (lengths * 2).tolist() == [6, 10] and lengths.max().item() == 5
        assert torch.arange(7, device=DEVICE)[lengths].cpu().tolist() == [3, 5]
        with pytest.raises(RuntimeError, match="not known"):
            (torch.empty(KB, KB, device=DEVICE).sum() > 0).item()


# Files of the full size


@pytest.mark.parametrize("format, gigabytes", [("bf16", 7.93), ("fp8", 3.98), ("q4_k", 2.57)])
def test_a_full_size_file_is_read_and_takes_no_room(tmp_path, format, gigabytes):
    path = write_sparse(tmp_path, FileKind.DIT, format, PUBLISHED_TRANSFORMER)
    assert path.stat().st_size == pytest.approx(gigabytes * 1e9, rel=0.01)
    assert path.stat().st_blocks * 512 < 10_000_000
    assert SingleFile(path, FileKind.DIT).config == PUBLISHED_TRANSFORMER


def test_notes_of_fp8_layers_are_in_the_file(tmp_path):
    small = PUBLISHED_TRANSFORMER | {"num_layers": 1, "num_refiner_layers": 1}
    state = SingleFile(write_sparse(tmp_path, FileKind.DIT, "fp8", small), FileKind.DIT).state_dict()
    note = bytes(state["layers.0.attn.to_q.comfy_quant"].tolist())
    assert json.loads(note)["format"] == "float8_e4m3fn"
    assert state["layers.0.attn.to_q.weight"].dtype is torch.float8_e4m3fn


# The bars


class Phase:
    def __init__(self, peak):
        self.name, self.weights, self.whole, self.peak, self.activations, self.planned = "sample", {"M": 1e9}, {"M": False}, peak, 1e8, 2e8


class Host:
    """As nodes/host/bench.py, with a card that runs out of memory below 5 GB."""

    def edit_phases(self, files, size, side, tokens):
        assert set(files) == set(PUBLISHED) and side == 1024
        if size < 5e9:
            raise torch.OutOfMemoryError("1 byte")
        return [Phase(size - 1e9), Phase(size - 2e9)]


def test_each_card_has_its_bar_and_too_small_a_card_does_not_hold():
    results = Results({})
    memory.measure(Host(), results)
    assert [(claim.bar.limit, claim.found.value) for claim in results.claims] == [(11, 10), (7, 6), (5, 4), (3, 3)]
    assert [claim.verdict for claim in results.claims] == [HOLDS] * 3 + [FAILS]
    assert results.memory[0] == MemoryRow("bf16, a card of 11 GB", "sample", "M 1.00, in part", 0.1, 10.0, 0.2)
    text = to_markdown(results)
    assert "simulated limit" in text and "too small" in text and "M 1.00, in part" in text
    assert len(json.loads(to_json(results))["memory"]) == 6


# Runs in a row


def test_runs_are_the_same_each_time_and_differ_from_one_another():
    planned = runs.plan(100)
    assert planned == runs.plan(100) and len(set(planned)) == 100
    assert planned[0].cancel_after is planned[-1].cancel_after is None
    assert 15 < sum(run.cancel_after is not None for run in planned) < 35
    assert {len(run.references) for run in planned} == {0, 1, 2} and None in {run.lora for run in planned}
    assert len({run.lora for run in planned}) == 5 and {run.size for run in planned} == set(runs.SIZES)


def test_every_size_has_been_seen_where_the_comparison_begins():
    planned = runs.plan(runs.RUNS)
    assert {run.size for run in planned[: runs.FROM]} == set(runs.SIZES)


def test_growth_is_from_the_runs_around_the_first_to_the_last_ones():
    held = [100] * 5 + [200] * 15 + [999] * 50 + [203] * 5
    found = runs.growth(held, 20)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


# The start


def seconds(read, encoder):
    return {"read": [read] * 5, "encoder": [encoder] * 5, "encoded": [1.5 * encoder] * 5, "diffusion": [2 * encoder] * 5}


def test_start_is_told_beside_its_bar_for_each_cache():
    results = Results({})
    start._report({"warm": seconds(1.0, 1.2), "cold": seconds(10.0, 15.0)}, 2.5, results)
    judged = [claim for claim in results.claims if claim.bar]
    assert [(claim.found.value, claim.verdict) for claim in judged] == [(pytest.approx(1.2), HOLDS), (1.5, FAILS)]
    assert len(results.claims) == 6


def test_a_system_that_has_not_forgotten_the_files_gives_no_figure_for_a_cold_cache():
    results = Results({})
    start._report({"warm": seconds(1.0, 1.2), "cold": seconds(1.1, 1.2)}, 2.5, results)
    assert not any("cold" in claim.what for claim in results.claims)
    assert any("cold file cache: not measured" in note for note in results.notes)
