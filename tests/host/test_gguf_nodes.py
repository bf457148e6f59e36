"""GGUF files in a real server: listed, loaded, sampled with, with a LoRA, and refused in one sentence."""

import json

import pytest
import torch
from harness import Graph, Server
from make_checkpoints import FOREIGN, golden_config, golden_weights, truncate
from make_gguf import llama_names, write_gguf
from safetensors import safe_open
from safetensors.torch import load_file
from scenes import Scene, difference
from small_models import write_encoder

from omnigen2_core.checkpoints import CONFIG_KEY
from omnigen2_core.convert.convert import convert
from omnigen2_core.nano.folder import WEIGHTS

NANO, LORA = "OmniGen2-nano (built in)", "OmniGen2-nano framed (built in)"
SMALL = "OmniGen2-nano-Q5_K"
PROMPT = "A large red ring in the middle on a blue background"


@pytest.fixture(scope="module")
def files(server):
    """The built-in model in Q5_K: as a folder, and its transformer as a file."""
    if not (server.models / "diffusers" / SMALL).exists():
        convert(WEIGHTS, server.models / "diffusers" / SMALL, "q5_k")
        convert(WEIGHTS, server.models / "diffusion_models" / "nano-Q5_K.gguf", "q5_k", part="transformer")
        convert(WEIGHTS, server.models / "diffusion_models" / "nano-int8.safetensors", "int8", part="transformer")
    return server.models


def scene(folder: str, dtype: str = "auto", **more) -> Scene:
    made = Scene(folder, prompt=PROMPT, negative="", width=96, height=96, **more)
    made.graph.prompt[made.loader]["inputs"]["dtype"] = dtype
    return made


def with_file(made: Scene, name: str, dtype: str = "auto") -> Scene:
    made.model = made.add("OmniGen2LoadDiffusionModel", unet_name=name, dtype=dtype)[0]
    return made


def with_lora(made: Scene) -> Scene:
    made.model = made.add("OmniGen2LoadLoRA", model=made.model, lora_name=LORA, strength=1.0)[0]
    return made


def test_gguf_files_are_listed_wherever_they_lie(server, golden, files):
    weights = {"x": torch.zeros(2, 32)}
    for place in ("unet/a.gguf", "diffusion_models/sub/b.GGUF"):
        write_gguf(server.models / place, weights)
    for place in ("clip/c.gguf", "text_encoders/d.gguf"):
        write_gguf(server.models / place, weights)

    def options(node: str, name: str) -> list[str]:
        listed = server.node(node)["input"]["required"][name]
        names = listed[0] if isinstance(listed[0], list) else listed[1]["options"]
        return [name.replace("\\", "/") for name in names]

    try:
        assert {"a.gguf", "sub/b.GGUF", "nano-Q5_K.gguf"} <= set(options("OmniGen2LoadDiffusionModel", "unet_name"))
        assert {"c.gguf", "d.gguf"} <= set(options("OmniGen2LoadEncoder", "text_encoder"))
        # ComfyUI's own loader, which cannot read them, does not get them.
        assert not [name for name in options("UNETLoader", "unet_name") if name.lower().endswith(".gguf")]
    finally:
        for place in ("unet/a.gguf", "diffusion_models/sub/b.GGUF", "clip/c.gguf", "text_encoders/d.gguf"):
            (server.models / place).unlink()


def test_folder_and_file_draw_nearly_the_same_picture_with_either_sampler(server, files):
    plain = scene(NANO, "fp32")
    exact = plain.run(server, plain.sample(steps=4))
    whole = scene(SMALL, "fp32")
    found = whole.run(server, whole.sample(steps=4))
    # Other weights, and another encoder: close to the picture, not it.
    assert 0.001 < (found - exact).norm() / exact.norm() < 0.35
    alone = with_file(scene(SMALL, "fp32"), "nano-Q5_K.gguf", "fp32")
    assert difference(alone.run(server, alone.sample(steps=4)), found) < 1e-4
    latents = []
    for made in (scene(NANO, "fp32"), scene(SMALL, "fp32")):
        latents.append(made.run(server, made.ksampler(steps=4)))
    assert 0.001 < (latents[1] - latents[0]).norm() / latents[0].norm() < 0.35


def test_auto_computes_as_for_other_files(server, files):
    for name in ("nano-Q5_K.gguf", "nano-int8.safetensors"):
        graph = Graph()
        loaded = graph.add("OmniGen2LoadDiffusionModel", unet_name=name, dtype="auto")
        inspected = graph.add("TestInspectModel", model=loaded[0])
        record = server.records(server.run(graph), inspected)
        assert record["patcher"] == "PackedModelPatcher"
        assert record["compute_dtype"] == "torch.float32"


def test_a_lora_takes_effect_and_goes_again(server, files):
    made = scene(SMALL, "fp32")
    latents = [made.sample(steps=2), with_lora(made).sample(steps=2)]
    nodes = [made.save(latent=latent) for latent in latents]
    result = server.run(made.graph)
    plain, framed = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(plain, framed) > 0.1
    reference = with_lora(scene(NANO, "fp32"))
    exact = reference.run(server, reference.sample(steps=2))
    assert (framed - exact).norm() / exact.norm() < 0.35
    again = scene(SMALL, "fp32")
    assert difference(again.run(server, again.sample(steps=2)), plain) < 1e-5


def test_references_and_int8_work_too(server, files):
    made = with_file(scene(NANO, "fp32"), "nano-int8.safetensors", "fp32")
    plain = scene(NANO, "fp32")
    found, exact = made.run(server, made.sample(steps=2)), plain.run(server, plain.sample(steps=2))
    assert 1e-5 < (found - exact).norm() / exact.norm() < 0.1


def test_a_saved_model_is_plain_again(server, files):
    made = with_lora(with_file(scene(SMALL, "fp32"), "nano-Q5_K.gguf", "fp32"))
    made.add("ModelSave", model=made.model, filename_prefix="packed")
    server.run(made.graph)
    saved, = (server.output).glob("packed*.safetensors")
    weights = load_file(saved)
    matrix = next(tensor for name, tensor in weights.items() if name.endswith("layers.0.attn.to_q.weight"))
    assert matrix.is_floating_point() and tuple(matrix.shape) == (192, 192)


def test_an_encoder_of_llama_cpp_reads_prompts(server, golden):
    file = write_encoder(server.models / "text_encoders" / "plain.safetensors", golden)
    with safe_open(file, "pt") as opened:
        metadata = {CONFIG_KEY: opened.metadata()[CONFIG_KEY]}
    path = server.models / "text_encoders" / "llama-Q8_0.gguf"
    weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    write_gguf(path, llama_names(weights), architecture="qwen2vl", metadata=metadata)

    def text(name: str) -> torch.Tensor:
        graph = Graph()
        loaded = graph.add("OmniGen2LoadEncoder", text_encoder=name, dtype="auto")
        encoded = graph.add("CLIPTextEncode", clip=loaded[0], text="a red cube")
        node = graph.add("TestSaveTensors", name="text", conditioning=encoded[0])
        return server.tensors(server.run(graph), node)["cond.0"]

    exact, found = text(file.name), text(path.name)
    assert 1e-5 < (found - exact).norm() / exact.norm() < 0.05


def test_an_encoder_in_few_bits_answers_about_a_picture(server, files):
    made = scene(SMALL)
    picture = made.add("VAEDecode", samples=made.sample(steps=2), vae=made.vae)
    asked = made.add(
        "OmniGen2Ask", clip=made.clip, preset="own_question", question="What is in the picture?", each_image=False,
        sampling=False, temperature=1.0, top_p=1.0, top_k=1, repetition_penalty=1.0, seed=0, max_length=4, at_once=4,
        **{"images.image_1": picture[0]},
    )  # fmt: skip
    shown = made.add("PreviewAny", source=asked[0])
    assert server.run(made.graph).ui[shown]["text"]


# Refusals


def refusal(server: Server, node: str, **inputs) -> str:
    graph = Graph()
    loaded = graph.add(node, **inputs)
    graph.add("PreviewAny", source=loaded[0])
    result = server.run(graph, check=False)
    assert (result.status, result.error_node) == ("error", loaded), result.error
    assert "\n" not in result.error and len(result.error) < 400
    return result.error


def test_wrong_files_are_refused_in_one_sentence(server, golden, files):
    models = server.models / "diffusion_models"
    write_gguf(models / "flux.gguf", {name: torch.zeros(2, 32) for name in FOREIGN["flux"]})
    write_gguf(models / "cut.gguf", golden_weights(golden, "transformer"))
    truncate(models / "cut.gguf")
    write_gguf(models / "encoder.gguf", golden_weights(golden, "mllm"),
               metadata={CONFIG_KEY: json.dumps(golden_config(golden, "mllm"))})
    try:
        def load(name, dtype="auto"):
            return refusal(server, "OmniGen2LoadDiffusionModel", unet_name=name, dtype=dtype)

        assert "flux.gguf is a FLUX transformer, but the OmniGen2 diffusion model was expected" in load("flux.gguf")
        assert "cut.gguf is cut short or damaged" in load("cut.gguf")
        assert "is loaded with OmniGen2 Load Encoder" in load("encoder.gguf")
        assert "choose auto" in load("nano-Q5_K.gguf", "fp8_e4m3fn")
    finally:
        for name in ("flux.gguf", "cut.gguf", "encoder.gguf"):
            (models / name).unlink()
