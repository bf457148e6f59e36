"""Making smaller files: which tensor in what and why, folders and files, streaming, refusals, and what it costs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from make_checkpoints import FOREIGN, golden_config, golden_weights, save_single, write_folder, write_single, write_sparse
from make_gguf import write_gguf
from safetensors import safe_open

from omnigen2_core.checkpoints import CONFIG_KEY, PROFILE_KEY, FileInfo, FileKind, ModelFolder, SingleFile, load_weights
from omnigen2_core.checkpoints.header import TensorInfo, read_header
from omnigen2_core.convert.__main__ import main
from omnigen2_core.convert.convert import convert, convert_part
from omnigen2_core.convert.errors import measure
from omnigen2_core.convert.mix import FORMATS, choose
from omnigen2_core.convert.source import Source, source_of_folder
from omnigen2_core.errors import CheckpointError
from omnigen2_core.mllm import build_mllm, generate_tokens, load_mllm_state_dict
from omnigen2_core.nano.framed import FILE as LORA
from omnigen2_core.pipeline import OmniGen2Pipeline
from omnigen2_core.quantised import PackedTensor, operations_for, packed_operations
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "omnigen2_core" / "nano" / "weights" / "OmniGen2-nano"
GGUF = [name for name in FORMATS if name not in ("fp8", "int8")]
# Of a matrix, relative to its size.
LARGEST_ERROR = {
    "q8_0": 0.008, "q6_k": 0.025, "q5_k": 0.05, "q5_0": 0.06, "q4_k": 0.1, "q4_0": 0.12, "fp8": 0.04, "int8": 0.02,
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """convert(format) -> the built-in model converted to it, once."""
    place, made = tmp_path_factory.mktemp("converted"), {}

    def get(format: str) -> Path:
        if format not in made:
            convert(NANO, place / format, format)
            made[format] = place / format
        return made[format]

    return get


# The mix


@pytest.fixture(scope="module")
def published(golden):
    """Names and shapes of the published files."""
    keys = json.loads((golden / "real_keys.json").read_text(encoding="utf-8"))
    parts = {"transformer": "omnigen2_transformer", "mllm": "qwen25_vl_3b_transformers_4_51"}
    return {part: {n: TensorInfo("BF16", tuple(s), 0) for n, s in keys[key].items()} for part, key in parts.items()}


def mix(tensors, format):
    return {name: choose(name, info, format) for name, info in tensors.items()}


@pytest.mark.parametrize("format", ["q6_k", "q5_k", "q4_k"])
def test_matrices_of_2520_by_2520_divide_by_32_and_not_by_256(published, format):
    choices = mix(published["transformer"], format)
    attention = choices["layers.5.attn.to_q.weight"]
    assert attention.format == "Q8_0" and attention.shape == (2520 * 2520 // 32, 32)
    assert "do not divide" in attention.reason and format.upper() in attention.reason
    assert choices["layers.5.attn.to_k.weight"].format == "Q8_0"
    widening = choices["layers.5.feed_forward.linear_1.weight"]
    assert widening.format == format.upper() and widening.shape == (10240 * 2520 // 256, 256)
    narrowing = choices["layers.5.feed_forward.linear_2.weight"]
    assert narrowing.format == format.upper() and narrowing.shape == (2520, 10240)
    assert choices["layers.5.norm1.linear.weight"].format == format.upper()


@pytest.mark.parametrize("format", ["q8_0", "q5_0", "q4_0"])
def test_blocks_of_32_divide_every_matrix_of_the_blocks(published, format):
    for part in published.values():
        choices = mix(part, format)
        inside = [n for n, i in part.items() if len(i.shape) == 2 and (".layers." in f".{n}" or "refiner" in n or "blocks" in n)]
        assert inside and {choices[name].format for name in inside} == {format.upper()}


@pytest.mark.parametrize("format", FORMATS)
def test_the_models_ends_stay_as_they_are(published, format):
    choices = mix(published["transformer"], format)
    for name in ("x_embedder.weight", "ref_image_patch_embedder.weight", "image_index_embedding", "norm_out.linear_2.weight"):
        assert choices[name].format == "BF16" and choices[name].shape == published["transformer"][name].shape
    small = choices["layers.0.norm2.weight"].format
    assert small == ("BF16" if format in ("fp8", "int8") else "F32")


@pytest.mark.parametrize("format", FORMATS)
def test_the_encoders_vocabulary_and_patches_lose_little(published, format):
    choices = mix(published["mllm"], format)
    vocabulary = choices["model.embed_tokens.weight"].format
    assert vocabulary == (format if format in ("fp8", "int8") else "Q8_0")
    patches = choices["visual.patch_embed.proj.weight"]
    assert patches.format == "BF16"
    # GGUF has four dimensions at most.
    assert len(patches.shape) == (5 if format in ("fp8", "int8") else 1)


# What comes out


@pytest.mark.parametrize("format", FORMATS)
def test_a_converted_folder_holds_the_model(converted, format):
    folder, exact = ModelFolder(converted(format)), ModelFolder(NANO)
    folder.check()
    assert folder.profile == exact.profile and folder.config("transformer") == exact.config("transformer")
    ending = "safetensors" if format in ("fp8", "int8") else "gguf"
    for part in ("transformer", "mllm"):
        assert [file.suffix for file in folder.weight_files(part)] == [f".{ending}"]
        found, plain = folder.state_dict(part, torch.float32), exact.state_dict(part, torch.float32)
        assert found.keys() == plain.keys()
        off = {name: ((found[name] - plain[name]).norm() / plain[name].norm()).item() for name in plain}
        assert {name: error for name, error in off.items() if error > LARGEST_ERROR[format]} == {}
        kept = [name for name, tensor in plain.items() if tensor.ndim < 2]
        assert all(off[name] == 0 for name in kept)
    assert sum(file.stat().st_size for file in folder.weight_files("transformer")) < 6e6


@pytest.mark.parametrize("format", ["q8_0", "q5_k", "fp8", "int8"])
def test_the_transformer_computes_with_what_is_stored(converted, format):
    folder = ModelFolder(converted(format))
    config = OmniGen2Config.from_dict(folder.config("transformer"))
    packed = OmniGen2Transformer(config, operations=packed_operations(), dtype=torch.float32, device="meta")
    plain = OmniGen2Transformer(config, device="meta")
    load_weights(packed, folder.state_dict("transformer", torch.float32, packed=True), format)
    load_weights(plain, folder.state_dict("transformer", torch.float32), format)
    assert sum(isinstance(weight, PackedTensor) for weight in packed.parameters()) == 71
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 16, 8, 8, generator=draw), torch.tensor([0.5]), torch.randn(1, 5, 160, generator=draw)
    with torch.no_grad():
        assert torch.allclose(packed(*inputs), plain(*inputs), atol=1e-5)


def test_the_gguf_package_reads_what_is_written(converted):
    path = ModelFolder(converted("q5_k")).weight_files("transformer")[0]
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].parts[-1].tobytes() == b"omnigen2"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    name = "layers.2.attn.to_q.weight"
    assert tensors[name].tensor_type.name == "Q5_K" and tensors[name].shape.tolist() == [256, 192 * 192 // 256]
    shape = reader.fields[f"comfy.gguf.orig_shape.{name}"]
    assert [int(shape.parts[i][0]) for i in shape.data] == [192, 192]
    numbers = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).reshape(192, 192)
    found = ModelFolder(converted("q5_k")).state_dict("transformer", torch.float32)[name]
    assert torch.equal(torch.from_numpy(numbers), found)
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)


def test_fp8_and_int8_are_stored_as_comfyui_stores_them(converted):
    for format, noted, shape in (("fp8", "float8_e4m3fn", ()), ("int8", "int8_tensorwise", (192, 1))):
        path = ModelFolder(converted(format)).weight_files("transformer")[0]
        with safe_open(path, "pt") as file:
            note = json.loads(bytes(file.get_tensor("layers.0.attn.to_q.comfy_quant").tolist()))
            scale = file.get_tensor("layers.0.attn.to_q.weight_scale")
            assert note["format"] == noted and tuple(scale.shape) == shape and scale.dtype is torch.float32
            assert file.get_tensor("layers.0.attn.to_q.weight").abs().float().amax() >= 127


def test_one_part_becomes_a_file_that_says_what_it_is(tmp_path):
    for format, name in (("q8_0", "dit.gguf"), ("fp8", "dit.safetensors")):
        convert(NANO, tmp_path / name, format, part="transformer")
        file = SingleFile(tmp_path / name, FileKind.DIT)
        assert file.config == ModelFolder(NANO).config("transformer")
        assert file.profile == ModelFolder(NANO).profile
    convert(NANO, tmp_path / "encoder.gguf", "q8_0", part="mllm")
    assert SingleFile(tmp_path / "encoder.gguf", FileKind.ENCODER).info.has_vision


def test_a_single_file_is_converted_behind_any_prefix(tmp_path, golden):
    source = write_single(
        tmp_path / "dit.safetensors", golden, "transformer", prefix="model.diffusion_model.", dtype=torch.float16
    )
    convert(source, tmp_path / "small.gguf", "q4_0")
    file = SingleFile(tmp_path / "small.gguf", FileKind.DIT)
    assert file.info.prefix == "" and file.config == golden_config(golden, "transformer")
    assert file.state_dict().keys() == golden_weights(golden, "transformer").keys()


def test_shards_become_one_file(tmp_path, golden):
    folder = write_folder(tmp_path / "golden", golden, shards=3)
    convert(folder, tmp_path / "small", "q8_0")
    assert sorted(file.name for file in (tmp_path / "small" / "transformer").iterdir()) == [
        "config.json", "diffusion_pytorch_model.gguf",
    ]
    assert ModelFolder(tmp_path / "small").state_dict("mllm").keys() == golden_weights(golden, "mllm").keys()


def test_a_vocabulary_is_not_stored_twice(tmp_path, golden):
    config, weights = golden_config(golden, "mllm"), golden_weights(golden, "mllm")
    table = weights["model.embed_tokens.weight"]
    for tied in (True, False):
        source = save_single(
            tmp_path / "te.safetensors", {**weights, "lm_head.weight": table.clone()}, {**config, "tie_word_embeddings": tied}
        )
        convert(source, tmp_path / "te.gguf", "q8_0", force=True)
        assert ("lm_head.weight" in read_header(tmp_path / "te.gguf").tensors) != tied


# Streaming


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process's memory")
@pytest.mark.parametrize("format", ["q8_0", "fp8", "int8"])
def test_a_large_tensor_never_is_in_memory_as_a_whole(tmp_path, format):
    """In a process of its own: what else a test process does with its memory says nothing about a conversion."""
    write_sparse(tmp_path / "large.safetensors", {"layers.0.feed_forward.linear_1.weight": [40960, 2520]})
    write_sparse(tmp_path / "small.safetensors", {"layers.0.feed_forward.linear_1.weight": [256, 2520]})
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_CONVERTING, str(tmp_path), format],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    # The tensor has 206 MB in bf16, 413 MB in fp32.
    assert int(run.stdout) < 120e6


MEMORY_OF_CONVERTING = """
import sys
from pathlib import Path

from omnigen2_core.checkpoints import FileInfo, FileKind
from omnigen2_core.checkpoints.header import read_header
from omnigen2_core.convert.convert import convert_part
from omnigen2_core.convert.source import Source

place, format = Path(sys.argv[1]), sys.argv[2]
ending = ".safetensors" if format in ("fp8", "int8") else ".gguf"

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def highest_while_converting(name):
    path, highest = place / f"{name}.safetensors", [0]

    def watch(tensor, done, total):
        highest[0] = max(highest[0], anonymous())

    source = Source("transformer", name, {path: FileInfo(path, FileKind.DIT, "", "", read_header(path))}, {})
    convert_part(source, place / f"{name}-converted{ending}", format, watch)
    return highest[0]

# The small one first: what is imported and started for the work is no part of its size.
print(-highest_while_converting("small") + highest_while_converting("large"))
"""


# Refusals


def refusal(*arguments, **options) -> str:
    with pytest.raises(CheckpointError) as refused:
        convert(*arguments, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_nothing_is_overwritten_unless_asked(tmp_path, golden):
    source = write_single(tmp_path / "dit.safetensors", golden, "transformer")
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    assert "is there already" in refusal(source, out, "q8_0")
    assert out.read_bytes() == b"mine"
    convert(source, out, "q8_0", force=True)
    assert SingleFile(out, FileKind.DIT).info.dtype == "Q8_0"
    folder = write_folder(tmp_path / "golden", golden)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    assert "is no model folder, so it is not replaced" in refusal(folder, tmp_path / "photos", "q8_0", force=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_the_source_is_never_written_into(tmp_path, golden):
    folder = write_folder(tmp_path / "golden", golden)
    for out in (folder, folder / "small"):
        assert "is the source or lies in it" in refusal(folder, out, "q8_0", force=True)
    assert "is the source or lies in it" in refusal(folder, folder / "dit.gguf", "q8_0", part="transformer")


def test_a_name_with_the_wrong_ending_is_refused(tmp_path):
    assert "must end with .gguf" in refusal(NANO, tmp_path / "dit.safetensors", "q8_0", part="transformer")
    assert "must end with .safetensors" in refusal(NANO, tmp_path / "dit.gguf", "int8", part="transformer")


def test_what_cannot_be_converted_is_named(tmp_path, golden, converted):
    flux = write_sparse(tmp_path / "flux.safetensors", FOREIGN["flux"])
    assert "flux.safetensors is a FLUX transformer; only" in refusal(flux, tmp_path / "x.gguf", "q8_0")
    vae = write_single(tmp_path / "ae.safetensors", golden, "vae")
    assert "ae.safetensors is the FLUX.1 VAE; only" in refusal(vae, tmp_path / "x.gguf", "q8_0")
    small = write_gguf(tmp_path / "small.gguf", golden_weights(golden, "transformer"))
    assert "is a GGUF file, so it was made smaller before" in refusal(small, tmp_path / "x.gguf", "q4_0")
    for format in ("q5_k", "fp8"):
        assert "made smaller before" in refusal(converted(format), tmp_path / "x", "q4_0")
    dit = write_single(tmp_path / "dit.safetensors", golden, "transformer")
    assert "is the diffusion model, not the part mllm" in refusal(dit, tmp_path / "x.gguf", "q4_0", part="mllm")
    assert "there is no" in refusal(tmp_path / "gone", tmp_path / "x", "q4_0")
    shutil.copytree(NANO, tmp_path / "half", ignore=shutil.ignore_patterns("mllm"))
    assert "lacks mllm/" in refusal(tmp_path / "half", tmp_path / "x", "q4_0")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]


def test_a_run_that_is_broken_off_leaves_nothing(tmp_path):
    def stop(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    for out, part in ((tmp_path / "small", None), (tmp_path / "small.gguf", "transformer")):
        with pytest.raises(KeyboardInterrupt):
            convert(NANO, out, "q8_0", part=part, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_not_taken_in(tmp_path):
    left = tmp_path / "small.partial" / "transformer" / "diffusion_pytorch_model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    convert(NANO, tmp_path / "small", "q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert ModelFolder(tmp_path / "small").weight_files("transformer")[0].suffix == ".gguf"


# The command


def test_the_command_prints_the_mix_and_how_far_it_is(tmp_path, capsys):
    assert main([str(NANO), str(tmp_path / "dit.gguf"), "--format", "q4_k", "--part", "transformer"]) == 0
    printed = capsys.readouterr().out
    assert "100 %  transformer/ of OmniGen2-nano, 3.2 MB" in printed
    assert "62 tensors" in printed and "Q4_K  matrices of the blocks; flattened" in printed
    assert "BF16  the model's ends, kept as they are" in printed
    assert "3.2 MB of 10.1 MB" in printed
    assert main([str(NANO), str(tmp_path / "dit.gguf"), "--format", "q4_k", "--part", "transformer"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_the_command_prints_what_a_format_costs(capsys):
    assert main([str(NANO), "--errors", "--format", "q8_0", "--part", "transformer"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("q8_0"))
    assert [part for part in line.split()][-1] == "%"


def test_fewer_bits_cost_more():
    source = source_of_folder(ModelFolder(NANO), "transformer")
    found = {format: measure(source, format) for format in ("q8_0", "q6_k", "q5_k", "q4_k")}
    outputs = [error.output for error in found.values()]
    assert outputs == sorted(outputs) and outputs[0] < 0.01 and outputs[2] < 0.06
    assert all(error.weights <= error.worst < LARGEST_ERROR[format] for format, error in found.items())
    assert {CONFIG_KEY, PROFILE_KEY} <= source.metadata.keys()


# Without ComfyUI


def levels(pipeline, **more):
    [picture] = pipeline.generate("A large red ring in the middle on a blue background", seeds=4, steps=2, **more)
    return np.asarray(picture).astype(int)


def test_a_pipeline_draws_from_a_converted_folder_with_a_lora_too(converted):
    plain, small = (OmniGen2Pipeline.from_folder(folder, device="cpu") for folder in (NANO, converted("q8_0")))
    assert sum(isinstance(weight, PackedTensor) for weight in small.transformer.parameters()) == 71
    assert small.dtype is torch.float32
    before = levels(small)
    assert 0 < np.abs(before - levels(plain)).mean() < 3
    for pipeline in (plain, small):
        pipeline.load_lora(LORA)
    framed = levels(small)
    assert np.abs(framed - before).mean() > 5
    assert np.abs(framed - levels(plain)).mean() < 3
    assert sum(isinstance(weight, PackedTensor) for weight in small.transformer.parameters()) == 71
    small.load_lora(LORA, -1.0)
    assert np.abs(levels(small) - before).mean() < 0.01


def test_an_encoder_writes_from_a_packed_vocabulary(converted):
    folder = ModelFolder(converted("q5_k"))
    written = []
    for packed in (True, False):
        weights = folder.state_dict("mllm", torch.float32, packed=packed)
        model = build_mllm(folder.config("mllm"), operations=operations_for(weights), dtype=torch.float32)
        load_mllm_state_dict(model, weights)
        ids = torch.tensor([[5, 9, 30, 12]])
        written.append(generate_tokens(model, ids, torch.ones_like(ids), max_new_tokens=4, stop_ids=[-1]))
    assert written[0] == written[1]
