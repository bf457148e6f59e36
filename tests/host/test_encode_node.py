"""The encode node in a real server: three conditionings, sizes, references, notes, and what it refuses."""

import json

import pytest
import torch
from harness import Graph, Refused
from make_checkpoints import golden_config, golden_weights
from PIL import Image
from safetensors.torch import load_file
from small_models import TEXT_LIMIT, install_folder, write_encoder

NOTES = "omnigen2_notes"


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture
def encode(server, folder):
    """encode(images=[LoadImage nodes' outputs], **inputs) -> (tensors by output, notes)."""

    def run(
        graph=None, images=(), prompt="a red cube", negative_prompt="", with_vae=True, clip=None, vae=None, **inputs
    ):
        graph = graph or Graph()
        loaded = graph.add("OmniGen2LoadFolder", folder=folder, dtype="auto")
        inputs = {
            "width": 64,
            "height": 48,
            "match_reference": True,
            "max_pixels": 0,
            "max_side": 0,
            "encoder_sees_images": False,
            "batch_size": 1,
        } | inputs
        inputs |= {f"images.image_{i}": image for i, image in enumerate(images, start=1)}
        if with_vae:
            inputs["vae"] = vae or loaded[2]
        node = graph.add(
            "OmniGen2Encode", clip=clip or loaded[1], prompt=prompt, negative_prompt=negative_prompt, **inputs
        )
        names = ("positive", "negative_ref", "negative")
        saved = {name: graph.add("TestSaveTensors", name=name, conditioning=node[i]) for i, name in enumerate(names)}
        saved["latent"] = graph.add("TestSaveTensors", name="latent", latent=node[3])
        result = server.run(graph)
        return {name: server.tensors(result, saving) for name, saving in saved.items()}, result.ui[node][NOTES]

    return run


@pytest.fixture
def refused(server, encode, monkeypatch):
    """refused(...) -> the sentence with which the same run ends."""

    def run(*arguments, **inputs):
        real = server.run
        caught = {}

        def check_later(graph, **options):
            caught["result"] = real(graph, check=False, **options)
            raise _Ended

        monkeypatch.setattr(server, "run", check_later)
        with pytest.raises(_Ended):
            encode(*arguments, **inputs)
        monkeypatch.undo()
        assert caught["result"].status == "error"
        return caught["result"].error

    return run


class _Ended(Exception):
    pass


@pytest.fixture
def picture(server):
    """picture(graph, width, height) -> the IMAGE output of a LoadImage node."""

    def load(graph: Graph, width: int, height: int, mode: str = "RGB"):
        image = Image.effect_mandelbrot((width, height), (-2, -1.2, 0.8, 1.2), 40).convert(mode)
        return graph.add("LoadImage", image=server.save_input(f"{mode}{width}x{height}.png", image))[0]

    return load


# What comes out


def test_three_conditionings_and_a_latent_of_the_asked_size(encode, picture):
    graph = Graph()
    tensors, notes = encode(
        graph, [picture(graph, 96, 64), picture(graph, 64, 80)], prompt="image 1 beside image 2", batch_size=3
    )
    assert [tuple(tensors["positive"][f"reference.0.{i}"].shape) for i in range(2)] == [(1, 16, 8, 12), (1, 16, 10, 8)]
    assert torch.equal(tensors["negative_ref"]["reference.0.1"], tensors["positive"]["reference.0.1"])
    assert not any(name.startswith("reference") for name in tensors["negative"])
    assert torch.equal(tensors["negative"]["cond.0"], tensors["negative_ref"]["cond.0"])
    assert tensors["latent"]["latent"].shape == (3, 16, 6, 8)
    assert not tensors["latent"]["latent"].any()
    for name in ("positive", "negative"):
        assert tensors[name]["attention_mask.0"].shape == tensors[name]["cond.0"].shape[:2]
        assert tensors[name]["attention_mask.0"].all()
    assert notes == []


def test_without_references_all_conditionings_are_plain(encode):
    tensors, notes = encode(with_vae=False, width=80, height=64)
    assert all(
        set(tensors[name]) == {"cond.0", "attention_mask.0"} for name in ("positive", "negative_ref", "negative")
    )
    assert notes == []


def test_a_reference_is_the_mean_latent_of_the_lanczos_resized_picture(server, encode, golden):
    from omnigen2_core.vae import AutoencoderKL, VAEConfig

    cases = load_file(golden / "image_preprocess.safetensors")
    vae = AutoencoderKL(VAEConfig.from_dict(golden_config(golden, "vae"))).requires_grad_(False)
    vae.load_state_dict(golden_weights(golden, "vae"))
    for case in json.loads((golden / "image_sizing.json").read_text(encoding="utf-8"))["pixel_cases"]:
        k, graph = case["index"], Graph()
        file = server.save_input(f"golden{k}.png", Image.fromarray(cases[f"image.{k}"].numpy()))
        image = graph.add("LoadImage", image=file)
        tensors, _ = encode(graph, [image[0]], max_pixels=case["max_pixels"], max_side=case["max_side_length"])
        expected = vae.encode(cases[f"pixels.{k}"]).mean
        assert (tensors["positive"]["reference.0.0"] - expected).abs().max() < 1e-4


def test_an_encoder_that_sees_the_images_gives_what_the_chat_pipeline_gives(server, encode, picture, golden, folder):
    from omnigen2_core.mllm import build_mllm, encode_text, encode_with_images, load_mllm_state_dict
    from omnigen2_core.prompts import OmniGen2Tokenizer, chat_prompt
    from omnigen2_core.vision import preprocess, token_counts

    graph = Graph()
    images = [picture(graph, 96, 64), picture(graph, 60, 100)]
    tensors, _ = encode(graph, images, prompt="the (first:1.3) image", negative_prompt="blur", encoder_sees_images=True)
    model = build_mllm(golden_config(golden, "mllm"), dtype=torch.float32)
    load_mllm_state_dict(model, golden_weights(golden, "mllm"), dtype=torch.float32)
    tokenizer = OmniGen2Tokenizer.from_folder(server.models / "diffusers" / folder / "processor")
    pictures = [Image.open(server.input / name).convert("RGB") for name in ("RGB96x64.png", "RGB60x100.png")]
    pixels, grid = preprocess(pictures)
    batch = tokenizer.tokenize([chat_prompt("the (first:1.3) image", 2)], image_tokens=[token_counts(grid, 2)])
    with torch.no_grad():
        expected, _ = encode_with_images(model, batch.ids, batch.mask, pixels, grid)
        plain = tokenizer.tokenize([chat_prompt("blur")])
        negative = encode_text(model, plain.ids, plain.mask)
    assert tensors["positive"]["cond.0"].shape == expected.shape
    assert (tensors["positive"]["cond.0"] - expected).abs().max() < 1e-4
    assert (tensors["negative"]["cond.0"] - negative).abs().max() < 1e-4
    assert "reference.0.1" in tensors["positive"]


def test_brackets_are_text_here_and_weights_in_clip_text_encode(server, encode, folder):
    def core(prompt: str):
        graph = Graph()
        loaded = graph.add("OmniGen2LoadFolder", folder=folder, dtype="auto")
        encoded = graph.add("CLIPTextEncode", clip=loaded[1], text=prompt)
        saved = graph.add("TestSaveTensors", name="core", conditioning=encoded[0])
        return server.tensors(server.run(graph), saved)["cond.0"]

    plain, weighted = (
        encode(prompt=prompt, with_vae=False)[0]["positive"]["cond.0"] for prompt in ("a red cube", "a (red:1.5) cube")
    )
    assert weighted.shape[1] == plain.shape[1] + len("(:1.5)")
    assert (core("a red cube") - plain).abs().max() < 1e-5
    assert core("a (red:1.5) cube").shape == plain.shape
    assert (core("a \\(red:1.5\\) cube") - weighted).abs().max() < 1e-5


@pytest.mark.parametrize(
    "prompt",
    ["", "把红色的方块变成蓝色", "a 🦊 in the ☃️", '{"json": [1, 2]}', "embedding:easynegative, <lora:x:1>"],
)
def test_any_text_is_a_prompt(encode, prompt):
    tensors, notes = encode(prompt=prompt, with_vae=False)
    assert torch.isfinite(tensors["positive"]["cond.0"]).all()
    assert notes == []


def test_what_is_cut_from_a_prompt_of_5000_words_is_said(encode):
    tensors, notes = encode(prompt=" ".join(f"word{i}" for i in range(5000)), with_vae=False)
    assert tensors["positive"]["cond.0"].shape[1] == TEXT_LIMIT
    (note,) = notes
    assert f"the model reads {TEXT_LIMIT}" in note
    assert "cut off" in note and "word44 word45" in note


# Sizes


@pytest.mark.parametrize(
    "inputs, size, said",
    [
        ({"width": 100, "height": 70}, (96, 64), "multiples of 16"),
        ({"width": 1600, "height": 400}, (320, 80), "max_pixels"),
        ({"width": 8192, "height": 16}, (3616, 16), "max_pixels"),
        ({"width": 200, "height": 200, "max_pixels": 65536}, (192, 192), "multiples of 16"),
    ],
)
def test_the_latent_has_the_size_of_the_references_rule_and_a_note_says_why(encode, inputs, size, said):
    tensors, notes = encode(with_vae=False, **inputs)
    assert tuple(tensors["latent"]["latent"].shape[-2:]) == (size[1] // 8, size[0] // 8)
    assert any(said in note and f"{size[0]}x{size[1]}" in note for note in notes)


def test_one_reference_sets_the_size_unless_that_is_turned_off(encode, picture):
    for match, size in ((True, (112, 80)), (False, (64, 48))):
        graph = Graph()
        tensors, notes = encode(graph, [picture(graph, 118, 90)], match_reference=match)
        assert tuple(tensors["latent"]["latent"].shape[-2:]) == (size[1] // 8, size[0] // 8)
        assert any("match_reference" in note for note in notes) is not match


def test_limits_come_from_the_models_profile_unless_given(encode, picture):
    for inputs, size in (
        ({}, (160, 96)),
        ({"max_side": 96}, (96, 64)),
        ({"max_pixels": 400 * 400, "max_side": 400}, (288, 192)),
    ):
        graph = Graph()
        tensors, _ = encode(graph, [picture(graph, 300, 200)], **inputs)
        assert tuple(tensors["positive"]["reference.0.0"].shape[-2:]) == (size[1] // 8, size[0] // 8)


# References of every kind


@pytest.mark.parametrize(
    "size, latent",
    [((8, 8), (2, 2)), ((16, 160), (20, 2)), ((8000, 8000), (20, 20)), ((1000, 100), (2, 20)), ((4020, 16), (2, 20))],
)
def test_references_of_extreme_sizes_are_read(encode, size, latent):
    graph = Graph()
    image = graph.add("EmptyImage", width=size[0], height=size[1], batch_size=1, color=0xFF8000)
    tensors, _ = encode(graph, [image[0]])
    assert tuple(tensors["positive"]["reference.0.0"].shape[-2:]) == latent


def test_an_absurdly_thin_picture_is_refused_where_the_encoder_looks_at_it(refused):
    graph = Graph()
    image = graph.add("EmptyImage", width=4020, height=16, batch_size=1, color=0)
    assert "too thin for the encoder" in refused(graph, [image[0]], encoder_sees_images=True)


def test_transparency_lies_over_white(server, encode, picture):
    graph = Graph()
    image = picture(graph, 64, 64)
    mask = graph.add("SolidMask", value=1.0, width=64, height=64)
    clear = graph.add("JoinImageWithAlpha", image=image, alpha=mask[0])
    tensors, _ = encode(graph, [clear[0]])
    other = Graph()
    white = other.add("LoadImage", image=server.save_input("white.png", Image.new("RGB", (64, 64), "white")))
    expected, _ = encode(other, [white[0]])
    assert torch.equal(tensors["positive"]["reference.0.0"], expected["positive"]["reference.0.0"])


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_grey_and_16_bit_files_are_read(server, encode, mode):
    image = Image.effect_mandelbrot((64, 64), (-2, -1.2, 0.8, 1.2), 40)
    if mode == "I;16":
        image = Image.fromarray((torch.arange(4096).reshape(64, 64) * 16).numpy().astype("uint16"))
    graph = Graph()
    loaded = graph.add("LoadImage", image=server.save_input(f"{mode.replace(';', '')}.png", image))
    tensors, _ = encode(graph, [loaded[0]])
    assert torch.isfinite(tensors["positive"]["reference.0.0"]).all()


def test_a_batch_is_that_many_references(encode, picture):
    graph = Graph()
    batch = graph.add("RepeatImageBatch", image=picture(graph, 64, 64), amount=3)
    tensors, _ = encode(graph, [picture(graph, 80, 64), batch[0]], prompt="image 1")
    assert sum(name.startswith("reference") for name in tensors["positive"]) == 4
    assert tensors["positive"]["reference.0.0"].shape[-1] == 10


# What is said, and what is refused


def test_notes_help_where_the_paper_names_a_weakness(encode, picture):
    graph = Graph()
    small, large = picture(graph, 60, 100), picture(graph, 96, 96)
    _, notes = encode(graph, [small, large], prompt="put the cat on the sofa")
    assert any("reference 1 (60x100)" in note and "reference 2" not in note for note in notes)
    assert any("names none of them" in note for note in notes)
    graph = Graph()
    _, notes = encode(
        graph, [picture(graph, 96, 96), picture(graph, 64, 96)], prompt="the cat of image 1 on the sofa of image 2"
    )
    assert notes == []


def test_more_than_five_references_are_refused(refused, picture):
    graph = Graph()
    batch = graph.add("RepeatImageBatch", image=picture(graph, 64, 64), amount=4)
    message = refused(graph, [batch[0], batch[0]])
    assert message.startswith("8 reference images") and "remove 3" in message


def test_references_without_a_vae_are_refused(refused, picture):
    graph = Graph()
    assert "connect the VAE output" in refused(graph, [picture(graph, 64, 64)], with_vae=False)


def test_an_encoder_without_its_vision_part_reads_text_and_says_what_seeing_needs(
    server, encode, refused, picture, golden
):
    write_encoder(server.models / "text_encoders" / "blind.safetensors", golden, vision=False)
    graph = Graph()
    clip = graph.add("OmniGen2LoadEncoder", text_encoder="blind.safetensors", dtype="auto")[0]
    tensors, _ = encode(graph, [picture(graph, 640, 640)], clip=clip)
    assert torch.isfinite(tensors["positive"]["cond.0"]).all()
    graph = Graph()
    clip = graph.add("OmniGen2LoadEncoder", text_encoder="blind.safetensors", dtype="auto")[0]
    message = refused(graph, [picture(graph, 640, 640)], clip=clip, encoder_sees_images=True)
    assert "cannot see images" in message and "blind.safetensors" in message


def test_clip_set_last_layer_is_refused_for_other_layers(server, refused, folder):
    graph = Graph()
    loaded = graph.add("OmniGen2LoadFolder", folder=folder, dtype="auto")
    other = graph.add("CLIPSetLastLayer", clip=loaded[1], stop_at_clip_layer=-2)
    assert "last layer" in refused(graph, clip=other[0])


def test_numbers_out_of_range_are_refused_before_anything_runs(encode):
    with pytest.raises(Refused):
        encode(width=8)


# With core's nodes


def test_our_conditioning_equals_cores_nodes_put_together(server, encode, picture, folder):
    graph = Graph()
    tensors, _ = encode(graph, [picture(graph, 96, 64)])
    graph = Graph()
    loaded = graph.add("OmniGen2LoadFolder", folder=folder, dtype="auto")
    text = graph.add("CLIPTextEncode", clip=loaded[1], text="a red cube")
    latent = graph.add("VAEEncode", vae=loaded[2], pixels=picture(graph, 96, 64))
    joined = graph.add("ReferenceLatent", conditioning=text[0], latent=latent[0])
    saved = graph.add("TestSaveTensors", name="joined", conditioning=joined[0])
    core = server.tensors(server.run(graph), saved)
    assert core.keys() == tensors["positive"].keys()
    assert all((core[name].float() - tensors["positive"][name].float()).abs().max() < 1e-5 for name in core)


def test_a_vae_with_other_latents_is_refused(server, refused, picture, golden):
    graph = Graph()
    vae = graph.add("VAELoader", vae_name="pixel_space")
    assert "channels" in refused(graph, [picture(graph, 64, 64)], vae=vae[0])
