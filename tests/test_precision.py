"""fp16 stays finite and exact where plain fp16 overflows."""

import pytest
import torch
from dit_golden import DitCases, relative_rms, tiny_dit

from omnigen2_core.precision import HalfPrecision, Precision, default_dtype, precision_for

# For each place the weights that are scaled, and the largest value they then hold.
OVERFLOWS = {
    "feed-forward product": {"feed_forward.linear_1.weight": 300.0, "feed_forward.linear_3.weight": 300.0},
    "feed-forward output": {"feed_forward.linear_2.weight": 6e4},
    "attention output": {"to_v.weight": 1e3, "to_out.0.weight": 1e3},
    "queries and keys": {"to_q.weight": 6e4, "to_k.weight": 6e4},
    "latents' entry": {"x_embedder.weight": 6e4, "ref_image_patch_embedder.weight": 6e4},
    "text's entry": {"caption_embedder.1.weight": 6e4},
    "residual stream": {".norm2.weight": 6e4, "x_embedder.weight": 6e4, "caption_embedder.1.weight": 6e4},
    "time embedding": {
        "timestep_embedder.linear_2.weight": 6e4,
        "norm1.linear.weight": 2e-4,
        "norm_out.linear_1.weight": 2e-4,
    },
    "modulation": {"norm1.linear.weight": 6e4},
}


def velocity(model, inputs, precision):
    joint = model.refine(**inputs, precision=precision)
    return model.project_out(model.run_layers(joint, precision), joint, precision)


@pytest.mark.parametrize("place", OVERFLOWS)
def test_a_checkpoint_that_overflows_fp16_gives_fp32s_numbers(place, golden):
    inputs = DitCases(golden).inputs("ref1", torch.float16)
    full = {**inputs, "latents": inputs["latents"].float()}
    half_inputs = {**inputs, "text": inputs["text"].half()}
    model = tiny_dit(golden, torch.float16, OVERFLOWS[place])
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    assert not velocity(model, half_inputs, Precision(torch.float16)).isfinite().all(), "this scale proves nothing"
    got = velocity(model, inputs, HalfPrecision())
    want = velocity(model.float(), full, Precision(torch.float32))
    assert relative_rms(got, want) <= 5e-3


def test_affine_rows_that_fit_are_left_alone_and_others_are_recomputed():
    layer = torch.nn.Linear(64, 64).requires_grad_(False)
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    x[0, 1] *= 1e8
    want = layer(x)
    got = HalfPrecision().affine(x, layer.half())
    for row in range(3):
        assert relative_rms(got[0, row], want[0, row]) <= 5e-3


def test_zero_rows_stay_zero():
    layer = torch.nn.Linear(8, 8, bias=False).half()
    assert not HalfPrecision().linear(torch.zeros(1, 2, 8), layer)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_compute_plainly(dtype):
    precision = precision_for(dtype)
    assert type(precision) is Precision and precision.stream is dtype
    assert type(precision_for(torch.float16)) is HalfPrecision


def test_bf16_is_the_default_where_the_device_has_it(monkeypatch):
    assert default_dtype("cpu") == torch.float32
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor, has=has: has)
        assert default_dtype("cuda:1") == default_dtype("mps") == dtype
