"""GGUF files of the diffusion model and the encoder: read whoever wrote them, and refused in one sentence."""

import json
import sys

import gguf
import pytest
import torch
from make_checkpoints import golden_config, golden_weights, truncate
from make_gguf import llama_names, write_gguf

from omnigen2_core.checkpoints import CONFIG_KEY, FileKind, SingleFile, identify, read_tensors
from omnigen2_core.errors import CheckpointError
from omnigen2_core.quantised import PackedTensor

DIT, ENCODER = FileKind.DIT, FileKind.ENCODER


def refusal(path, kind=DIT) -> str:
    with pytest.raises(CheckpointError) as refused:
        SingleFile(path, kind).state_dict()
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def weights(golden):
    return golden_weights(golden, "transformer")


@pytest.fixture(scope="module")
def metadata(golden):
    return {CONFIG_KEY: json.dumps(golden_config(golden, "transformer"))}


@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q6_K", "Q5_K", "Q4_K"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_diffusion_model_is_read_in_every_format(tmp_path, weights, metadata, format, prefix):
    named = {prefix + name: tensor for name, tensor in weights.items()}
    path = write_gguf(tmp_path / "dit.gguf", named, format, metadata=metadata, flatten=True)
    file = SingleFile(path, DIT)
    state = file.state_dict()
    assert state.keys() == weights.keys()
    assert {name: tuple(t.shape) for name, t in state.items()} == {name: tuple(t.shape) for name, t in weights.items()}
    assert any(isinstance(t, PackedTensor) for t in state.values()) == format.startswith("Q")
    for name, tensor in file.state_dict(torch.float32).items():
        exact = weights[name].float()
        assert (tensor - exact).norm() <= 0.11 * exact.norm(), name


def test_flattened_tensors_have_their_shapes_again(tmp_path):
    """As published files store matrices of 2520 columns."""
    matrix = torch.randn(64, 120, generator=torch.Generator().manual_seed(0))
    path = write_gguf(tmp_path / "flat.gguf", {"x": matrix}, "Q4_K", flatten=True)
    stored = gguf.GGUFReader(path)
    assert stored.tensors[0].shape.tolist() == [256, 30]
    found = read_tensors(path)["x"]
    assert found.shape == matrix.shape and found.format.name == "Q4_K"
    assert (found.numbers() - matrix).norm() / matrix.norm() < 0.08


def finish(writer) -> None:
    """One small tensor, and the file is written."""
    writer.add_tensor("x", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_shape_that_cannot_be_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "omnigen2")
    writer.add_array("comfy.gguf.orig_shape.x", [7, 5])
    finish(writer)
    assert "holds x in shape [4, 32] and says that its shape was [7, 5]" in refusal(tmp_path / "odd.gguf")


def test_nothing_is_read_before_it_is_used(tmp_path, weights):
    state = read_tensors(write_gguf(tmp_path / "dit.gguf", weights))
    packed = [t for t in state.values() if isinstance(t, PackedTensor)]
    assert packed
    mapped = (tmp_path / "dit.gguf").read_bytes()
    assert all(t.parts[0].numpy().tobytes() in mapped for t in packed[:3])
    assert all(not t.parts[0].is_pinned() and t.nbytes < t.numel() * 2 for t in packed)


def test_an_encoder_under_llama_cpps_names_is_read(tmp_path, golden):
    weights = golden_weights(golden, "mllm")
    metadata = {CONFIG_KEY: json.dumps(golden_config(golden, "mllm"))}
    path = tmp_path / "encoder.gguf"
    write_gguf(path, llama_names(weights), architecture="qwen2vl", metadata=metadata, vocabulary=5000)
    file = SingleFile(path, ENCODER)
    assert not file.info.has_vision
    text = {name: tensor for name, tensor in weights.items() if not name.startswith("visual.")}
    state = file.state_dict(torch.float32)
    assert state.keys() == text.keys()
    for name, exact in text.items():
        assert (state[name] - exact.float()).norm() <= 0.01 * exact.float().norm(), name


def test_an_encoder_with_published_names_keeps_its_vision(tmp_path, golden):
    metadata = {CONFIG_KEY: json.dumps(golden_config(golden, "mllm"))}
    path = write_gguf(tmp_path / "encoder.gguf", golden_weights(golden, "mllm"), metadata=metadata)
    assert SingleFile(path, ENCODER).info.has_vision


def empty(*shape):
    return torch.zeros(shape)


FOREIGN = {
    "a FLUX transformer": {
        "double_blocks.0.img_attn.qkv.weight": empty(96, 32), "single_blocks.0.linear1.weight": empty(32, 32),
    },
    "a Qwen3 text encoder": {
        "token_embd.weight": empty(64, 32), "blk.0.attn_k.weight": empty(32, 32), "blk.0.attn_q_norm.weight": empty(32),
    },
    "a language model of another family": {"token_embd.weight": empty(64, 32), "blk.0.attn_k.weight": empty(32, 32)},
    "a T5 text encoder": {"enc.blk.0.attn_q.weight": empty(32, 32)},
    "only the vision part of an encoder (mmproj)": {"v.blk.0.attn_q.weight": empty(32, 32), "mm.0.weight": empty(32, 32)},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_another_models_file_is_named(tmp_path, what):
    path = write_gguf(tmp_path / "other.gguf", FOREIGN[what])
    assert identify(path).what.startswith(what)
    assert f"other.gguf is {what}" in refusal(path)


def test_a_format_that_is_not_read_is_named(tmp_path, weights):
    path = write_gguf(tmp_path / "odd.gguf", weights)
    kind, data = gguf.GGMLQuantizationType.IQ4_NL, (tmp_path / "odd.gguf").read_bytes()
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.tensor_type.name == "Q8_0")
    at = tensor.field.offset + len(tensor.field.parts[0].tobytes() + tensor.field.parts[1].tobytes()) + 4 + 16
    assert int.from_bytes(data[at : at + 4], "little") == gguf.GGMLQuantizationType.Q8_0
    path.write_bytes(data[:at] + int(kind).to_bytes(4, "little") + data[at + 4 :])
    message = refusal(path)
    assert f"odd.gguf holds {tensor.name} as IQ4_NL, which is not read here" in message and "Q4_K" in message


def test_a_piece_of_a_model_is_named(tmp_path, weights):
    writer = gguf.GGUFWriter(tmp_path / "part-00001-of-00003.gguf", "qwen2vl")
    writer.add_uint16("split.count", 3)
    finish(writer)
    assert "is one of 3 pieces of a model" in refusal(tmp_path / "part-00001-of-00003.gguf")


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.1, 0.001])
def test_a_file_that_is_cut_short_says_so(tmp_path, weights, keep):
    path = truncate(write_gguf(tmp_path / "cut.gguf", weights), keep)
    assert refusal(path).startswith("cut.gguf is cut short or damaged")


def test_without_the_package_it_says_what_to_install_where(tmp_path, weights, monkeypatch):
    path = write_gguf(tmp_path / "dit.gguf", weights)
    monkeypatch.setitem(sys.modules, "gguf", None)
    message = refusal(path)
    assert f'"{sys.executable}" -m pip install gguf' in message and message.startswith("dit.gguf is a GGUF file")
    assert "lora" not in message


def test_the_pack_loads_without_the_package():
    """Nothing imports it before a GGUF file is read."""
    import subprocess

    code = "import sys; sys.modules['gguf'] = None; import omnigen2_core.pipeline, omnigen2_core.convert.__main__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=__import__("pathlib").Path(__file__).parent.parent)
