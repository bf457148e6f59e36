"""Pictures from a model folder, without ComfyUI. The model is the golden one: its pictures mean nothing, but are exact."""

import shutil

import numpy as np
import pytest
import torch
from make_checkpoints import write_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from talking import golden_tokenizer

from omnigen2_core import transformer
from omnigen2_core.acceleration.presets import Acceleration
from omnigen2_core.errors import PromptError, ReferenceImageError, SamplingError, SizeError
from omnigen2_core.guidance import Guidance
from omnigen2_core.pipeline import OmniGen2Pipeline
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.precision import Precision
from omnigen2_core.understanding import ask

SETTINGS = {"steps": 3, "size": (64, 48)}


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """The golden weights as a model folder, with a tokenizer of bytes that has the golden encoder's special ids."""
    files = tmp_path_factory.mktemp("tokenizer")
    golden_tokenizer(golden).save(str(files / "tokenizer.json"))
    profile = {"default_width": 96, "default_height": 64, "max_text_tokens": 400, "shift_base": 4.0, "max_side": 128}
    path = tmp_path_factory.mktemp("model")
    write_folder(path, golden, profile=profile, tokenizer=files)
    return path


@pytest.fixture(scope="module")
def pipeline(folder):
    return OmniGen2Pipeline.from_folder(folder, device="cpu")


def picture(width, height, seed=0, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if mode == "L" else values, mode if mode != "L" else None)


def levels(image):
    return np.asarray(image).astype(int)


def largest_difference(a, b):
    assert a.size == b.size
    return np.abs(levels(a) - levels(b)).max()


def test_a_prompt_becomes_a_picture_of_the_requested_size(pipeline):
    [result] = pipeline.generate("a red circle", **SETTINGS)
    assert result.size == (64, 48) and result.mode == "RGB"
    assert levels(result).std() > 5


def test_the_profile_gives_the_size_when_nothing_else_does(pipeline):
    assert pipeline.generate("a red circle", steps=1)[0].size == (96, 64)


def test_one_reference_gives_its_size(pipeline):
    assert pipeline.generate("make it blue", references=[[picture(75, 52)]], steps=1)[0].size == (64, 48)


def test_a_size_between_multiples_is_reached_by_stretching(pipeline):
    assert pipeline.generate("a red circle", steps=1, size=(70, 50))[0].size == (70, 50)


def test_the_same_seed_is_the_same_picture_and_another_seed_is_not(pipeline):
    first, again, other = (pipeline.generate("a red circle", seeds=seed, **SETTINGS)[0] for seed in (5, 5, 6))
    assert largest_difference(first, again) == 0
    assert largest_difference(first, other) > 50


def test_one_seed_counts_up_over_the_batch(pipeline):
    noise = pipeline.noise([3, 4], 64, 48)
    assert noise.shape == (2, 16, 6, 8)
    assert torch.equal(noise[1], pipeline.noise([4], 64, 48)[0])
    batch = pipeline.generate(["a red circle"] * 2, seeds=3, **SETTINGS)
    assert largest_difference(batch[1], pipeline.generate("a red circle", seeds=4, **SETTINGS)[0]) <= 1


def test_a_batch_of_different_prompts_and_references_equals_single_runs(pipeline):
    prompts = ["a red circle", "put the first shape next to the second one, on a green ground", "红色圆形"]
    references = [None, [picture(64, 48, 1), picture(40, 90, 2, "L")], [picture(33, 33, 3, "RGBA")]]
    settings = {**SETTINGS, "guidance": Guidance(3.0, 2.0)}
    together = pipeline.generate(prompts, references=references, seeds=[7, 8, 9], **settings)
    for i, prompt in enumerate(prompts):
        [alone] = pipeline.generate(prompt, references=[references[i]], seeds=[7 + i], **settings)
        assert largest_difference(together[i], alone) <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": "a blue square"},
        {"negative_prompt": "a blue square"},
        {"references": [[picture(64, 48, 4)]]},
        {"guidance": Guidance(3.0, 1.0)},
        {"guidance": Guidance(5.0, 2.0, (0.5, 1.0))},
        {"solver": "dpmpp_2m"},
        {"shift": None},
        {"steps": 3},
        {"make_run": Acceleration(teacache=100.0).run},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_input_matters(pipeline, change):
    base = {"prompts": "a red circle", "references": [[picture(64, 48)]], "seeds": 1, **SETTINGS, "steps": 4}
    assert largest_difference(pipeline.generate(**base)[0], pipeline.generate(**{**base, **change})[0]) > 1


def test_no_negative_prompt_is_the_empty_one(pipeline):
    without, empty = (
        pipeline.generate("a red circle", negative_prompt=text, **SETTINGS)[0] for text in (None, "")
    )
    assert largest_difference(without, empty) == 0


def test_a_lora_can_be_merged_and_taken_out(folder, golden):
    pipeline = OmniGen2Pipeline.from_folder(folder, device="cpu")
    before = pipeline.generate("a red circle", **SETTINGS)[0]
    pipeline.load_lora(golden / "lora_weights.safetensors")
    assert largest_difference(before, pipeline.generate("a red circle", **SETTINGS)[0]) > 20
    pipeline.load_lora(golden / "lora_weights.safetensors", -1.0)
    assert largest_difference(before, pipeline.generate("a red circle", **SETTINGS)[0]) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_smaller_dtypes_stay_near_fp32(folder, pipeline, dtype):
    small = OmniGen2Pipeline.from_folder(folder, device="cpu", dtype=dtype)
    assert next(small.transformer.parameters()).dtype == dtype
    exact, near = (p.generate("a red circle", seeds=2, **SETTINGS)[0] for p in (pipeline, small))
    assert 0 < np.abs(levels(exact) - levels(near)).mean() < 6


def test_a_checkpoint_that_overflows_fp16_gives_fp32s_picture_in_fp16(folder, tmp_path, monkeypatch):
    scaled = shutil.copytree(folder, tmp_path / "scaled")
    for file in (scaled / "transformer").glob("*.safetensors"):
        weights = load_file(file)
        for name, weight in weights.items():
            if name.endswith(("feed_forward.linear_1.weight", "feed_forward.linear_3.weight")):
                weights[name] = weight * (300 / weight.abs().max())
        save_file(weights, file)
    half = OmniGen2Pipeline.from_folder(scaled, device="cpu", dtype=torch.float16)
    full = OmniGen2Pipeline.from_folder(scaled, device="cpu", dtype=torch.float32)
    full.encoder = half.encoder  # The same text: the encoder computes in bf16 beside fp16.
    latents = {}

    def drawn(name, model):
        [made] = model.generate("a red circle", callback=lambda step, estimate, x: latents.update({name: x}), **SETTINGS)
        return levels(made)

    near, exact = drawn("half", half), drawn("full", full)
    assert latents["half"].isfinite().all()
    assert (latents["half"] - latents["full"]).norm() < 1e-2 * latents["full"].norm()
    assert np.abs(near - exact).mean() < 1
    monkeypatch.setattr(transformer, "precision_for", lambda dtype, *more: Precision(dtype))
    with pytest.raises(OverflowError):
        half.generate("a red circle", callback=raise_unless_finite, **SETTINGS)


def raise_unless_finite(step, estimate, latents):
    if not latents.isfinite().all():
        raise OverflowError


def test_what_is_cut_off_a_long_prompt_is_logged(pipeline, caplog):
    pipeline.generate("word " * 200, steps=1, size=(16, 16))
    assert "tokens of a prompt are not read" in caplog.text


def test_a_sixth_reference_is_refused(pipeline):
    with pytest.raises(ReferenceImageError, match="at most 5"):
        pipeline.generate("a red circle", references=[[picture(32, 32)] * 6])


def test_lists_of_the_wrong_length_are_refused(pipeline):
    with pytest.raises(ReferenceImageError, match="1 prompts and 2"):
        pipeline.generate(["a", "b"], references=[None])
    with pytest.raises(PromptError, match="3 seeds for 1"):
        pipeline.generate("a", seeds=[1, 2, 3])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"steps": 0}, SamplingError, "at least 1 step, got 0"),
        ({"solver": "dpm"}, SamplingError, "no solver named 'dpm'; choose one of euler, dpmpp_2m"),
        ({"shift": "on"}, SamplingError, "shift is 'on'"),
        ({"prompts": []}, PromptError, "There is no prompt; give at least one"),
        ({"references": [picture(32, 32)]}, ReferenceImageError, r"for every prompt a list of its pictures: \[\[picture\]\]"),
        ({"references": picture(32, 32)}, ReferenceImageError, r"for every prompt a list of its pictures: \[\[picture\]\]"),
    ],
    ids=["steps", "solver", "shift", "prompts", "no lists", "a picture"],
)
def test_what_makes_no_run_is_refused_before_anything_is_encoded(monkeypatch, pipeline, wrong, error, message):
    monkeypatch.setattr(pipeline, "encode_prompts", lambda prompts: pytest.fail("encoded"))
    with pytest.raises(error, match=message):
        pipeline.generate(**{"prompts": "a red circle", **SETTINGS, **wrong})


def test_seeds_go_round(pipeline):
    assert torch.equal(pipeline.noise([2**64 + 3, -1], 16, 16), pipeline.noise([3, 2**64 - 1], 16, 16))


def test_the_assistant_sees_as_the_folder_says():
    pipeline = OmniGen2Pipeline.from_folder(WEIGHTS, device="cpu")
    assistant = pipeline.assistant()
    assert assistant.pixels.patch_size == 8 and assistant.pixels.max_pixels == 160 * 160
    [answer] = ask(assistant, "What color is the background?", [[Image.new("RGB", (96, 96), "white")]])
    assert answer.text


def test_references_of_different_sizes_need_a_size_of_the_result(pipeline):
    with pytest.raises(SizeError, match="48x48, 64x48"):
        pipeline.generate(["a", "b"], references=[[picture(64, 48)], [picture(48, 48)]])
