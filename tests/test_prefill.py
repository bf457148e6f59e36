"""Prompts that begin alike are read as others are, and what they begin with once."""

import pytest
import torch
from safetensors.torch import load_file
from test_mllm import FACTS, GOLDEN, SPECIAL, difference, inputs

from omnigen2_core import prefill
from omnigen2_core.mllm import build_mllm, generate_tokens, load_mllm_state_dict
from omnigen2_core.prefill import read_prompts

TAILS = ([5, 6, 7], [8], [5, 9, 10, 11, 12])
NEVER = 10**9


@pytest.fixture(scope="module")
def model():
    model = build_mllm(FACTS["config"], dtype=torch.float32)
    load_mllm_state_dict(model, load_file(GOLDEN / "mllm_weights.safetensors"))
    return model


@pytest.fixture(scope="module")
def shown(model):
    """A prompt with two images [L], their grids and their visual tokens, one tensor an image."""
    ids, _, pixels, grid = inputs(load_file(GOLDEN / "mllm_cases.safetensors"), "img2")
    with torch.no_grad():
        visual = model.look(pixels, grid)
    return ids[0].tolist(), grid, visual.split([int(count) // 4 for count in grid.prod(dim=1)])


@pytest.fixture
def read(model):
    """The shapes of ids in each pass of the model, from here on."""
    shapes = []
    handle = model.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    yield shapes
    handle.remove()


def padded(rows, side="left"):
    """Ids and mask [B, L]."""
    longest = max(map(len, rows))
    spare = [[SPECIAL["endoftext"]] * (longest - len(row)) for row in rows]
    zeros = [[0] * len(more) for more in spare]
    ids = [more + row if side == "left" else row + more for row, more in zip(rows, spare)]
    mask = [more + [1] * len(row) if side == "left" else [1] * len(row) + more for row, more in zip(rows, zeros)]
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def both_ways(monkeypatch, model, *prompts):
    """The states and following positions, of prompts read in one pass and with their beginning read once."""
    results = []
    for least in (NEVER, 1):
        monkeypatch.setattr(prefill, "LEAST_SAVED", least)
        states, _, following = read_prompts(model, *prompts)
        results.append((states, following))
    (states, following), (others, same) = results
    assert torch.equal(following, same)
    return difference(states, others)


@pytest.mark.parametrize("side", ["left", "right"])
def test_questions_about_the_same_pictures_read_them_once(monkeypatch, model, shown, read, side):
    beginning, grid, visual = shown
    ids, mask = padded([beginning + tail for tail in TAILS], side)
    assert both_ways(monkeypatch, model, ids, mask, grid.repeat(3, 1), torch.cat(visual * 3)) <= 1e-5
    assert read == [(3, len(beginning) + 5), (1, len(beginning)), (3, 5)]


def test_what_comes_after_the_first_picture_that_differs_is_read_for_each(monkeypatch, model, shown, read):
    beginning, grid, (first, second) = shown
    place = beginning.index(SPECIAL["image"], beginning.index(SPECIAL["image"]) + len(first))
    ids, mask = padded([beginning + tail for tail in TAILS])
    visual = torch.cat([first, second, first, second + 0.5, first, second])
    assert both_ways(monkeypatch, model, ids, mask, grid.repeat(3, 1), visual) <= 1e-5
    assert read[1:] == [(1, place), (3, len(beginning) - place + 5)]
    other = torch.cat([first, second, first + 0.5, second, first, second])
    assert both_ways(monkeypatch, model, ids, mask, grid.repeat(3, 1), other) <= 1e-5
    assert read[-2] == (1, beginning.index(SPECIAL["image"]))


def test_pictures_of_another_form_are_not_alike_even_if_their_tokens_are(monkeypatch, model, shown, read):
    beginning, grid, (first, second) = shown
    turned = grid[:, [0, 2, 1]]
    assert not torch.equal(turned[0], grid[0])
    ids, mask = padded([beginning + tail for tail in TAILS[:2]])
    assert both_ways(monkeypatch, model, ids, mask, torch.cat([grid, turned]), torch.cat([first, second] * 2)) <= 1e-5
    assert read[1][1] < beginning.index(SPECIAL["image"]) + len(first)


def test_texts_that_begin_alike_and_rows_that_are_the_same(monkeypatch, model, read):
    rows = [[1, 2, 3, 4], [1, 2, 3], [1, 2, 9, 9, 9]]
    assert both_ways(monkeypatch, model, *padded(rows)) <= 1e-5
    assert read == [(3, 5), (1, 2), (3, 3)]
    assert both_ways(monkeypatch, model, *padded([[1, 2, 3]] * 2)) <= 1e-5
    assert read[-2:] == [(1, 2), (2, 1)], "of each a token is left to be told from"


def test_what_is_written_is_what_single_prompts_write(monkeypatch, model, shown):
    beginning, grid, visual = shown
    rows = [beginning + tail for tail in TAILS]
    options = {"max_new_tokens": 8, "stop_ids": ()}
    singles = [generate_tokens(model, *padded([row]), grid=grid, visual=torch.cat(visual), **options)[0] for row in rows]
    monkeypatch.setattr(prefill, "LEAST_SAVED", 1)
    together = generate_tokens(model, *padded(rows), grid=grid.repeat(3, 1), visual=torch.cat(visual * 3), **options)
    assert together == singles


def test_a_short_beginning_is_not_worth_a_pass_of_its_own(model, read):
    with torch.no_grad():
        read_prompts(model, *padded([[1, 2, 3, 4], [1, 2, 3, 5]]))
    assert read == [(2, 4)]
