"""Qwen2.5-VL's cases: hidden states with and without images, positions, and greedily written tokens."""

from __future__ import annotations

from typing import Any, Callable, Iterator

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
from .report import Row, Ruler, relative_error

TOLERANCE = 1e-4
_STOP_IDS = ("im_end", "img", "endoftext")


def replay_encoder(folder: GoldenFolder, device: torch.device, dtype: torch.dtype) -> Iterator[Row]:
    """Every case of the encoder.

    Weights are in `dtype`. Activations are in bf16 for text in bf16, which is how the nodes compute there, and in fp32
    for everything else: cases with images are further off in bf16 than what is allowed (their rows say how far), and in
    fp16 the model overflows, so nothing here computes it so.
    """
    golden, tensors = folder.json("mllm"), folder.tensors("mllm_cases")
    weights = folder.tensors("mllm_weights")
    model = _built(golden["config"], weights, device, dtype, torch.float32)
    half = _built(golden["config"], weights, device, dtype, dtype) if dtype == torch.bfloat16 else None
    ruler = Ruler("encoder", dtype)
    text = named(tensors, "text")
    if text:
        yield from _replay_text(ruler, half or model, _placed(text, device))
    suppressed = [golden["special_ids"][name] for name in _STOP_IDS]
    for name, entry in golden["cases"].items():
        values = _placed(named(tensors, name), device)
        yield from _replay_images(ruler, model, half, name, values)
        if "greedy" in entry:
            yield from _replay_writing(ruler, model, name, values, suppressed)


def _built(
    config: dict, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype
) -> Qwen2_5_VL:
    """The encoder with weights rounded to `dtype`, computing in `compute_dtype`."""
    model = build_mllm(config, dtype=compute_dtype)
    load_mllm_state_dict(model, {name: value.to(dtype).to(device, compute_dtype) for name, value in weights.items()})
    return model


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


def _replay_images(
    ruler: Ruler, model: Qwen2_5_VL, half: Qwen2_5_VL | None, name: str, values: dict[str, Tensor]
) -> Iterator[Row]:
    """half: the model that computes in bf16, whose error is told beside the one that is judged."""
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

    def close(what: str, pairs: Callable[[Qwen2_5_VL], list[tuple[Tensor, Tensor]]]) -> Row:
        note = f"{relative_error(pairs(half)):.1e} with activations in bf16" if half else ""
        return ruler.close(f"{name} {what}", pairs(model), TOLERANCE, note=note)

    if "dbg.visual_tokens" in values:
        yield close("visual_tokens", lambda m: [(m.look(pixels, grid), values["dbg.visual_tokens"])])
    yield close(
        "last_hidden_full", lambda m: _real_rows(m(ids, mask, pixels, grid), values["last_hidden_full"], mask)
    )
    yield close(
        "text_embeds", lambda m: [(encode_with_images(m, ids, mask, pixels, grid)[0], values["text_embeds"])]
    )
    _, packed_mask = encode_with_images(model, ids, mask, pixels, grid)
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
