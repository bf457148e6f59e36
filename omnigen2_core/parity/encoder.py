"""Qwen2.5-VL's cases: hidden states with and without images, positions, and greedily written tokens."""

from __future__ import annotations

from typing import Any, Iterator

import torch
from torch import Tensor

from ..mllm import (
    Qwen2_5_VL,
    build_mllm,
    encode_text,
    encode_with_images,
    generate_tokens,
    load_mllm_state_dict,
    rope_positions,
)
from .folder import GoldenFolder, named
from .report import Row, Ruler

TOLERANCE = 1e-4
_STOP_IDS = ("im_end", "img", "endoftext")


def replay_encoder(folder: GoldenFolder, device: torch.device, dtype: torch.dtype) -> Iterator[Row]:
    """Every case of the encoder. `dtype` is that of the weights; activations are fp32, as in ComfyUI's text encoders."""
    golden, tensors = folder.json("mllm"), folder.tensors("mllm_cases")
    model = build_mllm(golden["config"], dtype=torch.float32)
    weights = {name: value.to(dtype).to(device, torch.float32) for name, value in folder.tensors("mllm_weights").items()}
    load_mllm_state_dict(model, weights)
    ruler = Ruler("encoder", dtype)
    text = named(tensors, "text")
    if text:
        yield from _replay_text(ruler, model, _placed(text, device))
    suppressed = [golden["special_ids"][name] for name in _STOP_IDS]
    for name, entry in golden["cases"].items():
        values = _placed(named(tensors, name), device)
        yield from _replay_images(ruler, model, name, values)
        if "greedy" in entry:
            yield from _replay_writing(ruler, model, name, values, suppressed)


def _placed(values: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in values.items()}


def _replay_text(ruler: Ruler, model: Qwen2_5_VL, values: dict[str, Tensor]) -> Iterator[Row]:
    ids, mask = values["input_ids"], values["attention_mask"]
    inner: list[Tensor] = []
    hook = model.model.layers[0].register_forward_hook(lambda module, inputs, output: inner.append(_first(output)))
    try:
        hidden = encode_text(model, ids, mask)
    finally:
        hook.remove()
    yield ruler.close("text last_hidden", [(hidden, values["last_hidden"])], TOLERANCE)
    if "dbg.hidden_after_layer0" in values:
        pairs = _real_rows(inner[0], values["dbg.hidden_after_layer0"], mask)
        yield ruler.close("text hidden_after_layer0", pairs, TOLERANCE)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _real_rows(got: Tensor, expected: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(row[keep], want[keep]) for row, want, keep in zip(got, expected, mask.bool(), strict=True)]


def _replay_images(ruler: Ruler, model: Qwen2_5_VL, name: str, values: dict[str, Tensor]) -> Iterator[Row]:
    ids, mask = values["input_ids"], values["attention_mask"]
    pixels, grid = values["pixel_values"], values["image_grid_thw"]
    config = model.config
    positions, following = rope_positions(
        ids, mask, grid, image_token_id=config.image_token_id, merge_size=config.merge_size
    )
    # transformers counts the offset of the next position from the padded length.
    offsets = following[:, None] - ids.shape[1]
    yield ruler.exact(
        f"{name} positions",
        [
            (positions.tolist(), values["position_ids"].tolist()),
            (offsets.tolist(), values["rope_deltas"].tolist()),
        ],
    )
    if "dbg.visual_tokens" in values:
        yield ruler.close(f"{name} visual_tokens", [(model.look(pixels, grid), values["dbg.visual_tokens"])], TOLERANCE)
    hidden = model(ids, mask, pixels, grid)
    yield ruler.close(f"{name} last_hidden_full", _real_rows(hidden, values["last_hidden_full"], mask), TOLERANCE)
    packed, packed_mask = encode_with_images(model, ids, mask, pixels, grid)
    yield ruler.close(f"{name} text_embeds", [(packed, values["text_embeds"])], TOLERANCE)
    yield ruler.exact(f"{name} text_mask", [(packed_mask.tolist(), values["text_mask"].tolist())])


def _replay_writing(
    ruler: Ruler, model: Qwen2_5_VL, name: str, values: dict[str, Tensor], suppressed: list[int]
) -> Iterator[Row]:
    if ruler.dtype != torch.float32:
        yield ruler.skipped(f"{name} greedy", "rounded weights may find another token likelier; fp32 only")
        return
    prompt = (values["input_ids"], values["attention_mask"], values["pixel_values"], values["image_grid_thw"])
    logits = model.logits(model(*prompt)[0, values["attention_mask"][0].bool()][-1])
    yield ruler.close(f"{name} greedy_logits_first", [(logits, values["greedy_logits_first"])], TOLERANCE)
    expected = values["greedy_new_tokens"].tolist()
    written = generate_tokens(model, *prompt, max_new_tokens=len(expected), stop_ids=(), suppress_ids=suppressed)
    yield ruler.exact(f"{name} greedy_new_tokens", zip(written[0], expected, strict=True))
