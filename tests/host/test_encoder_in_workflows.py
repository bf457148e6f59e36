"""Encoder and loaders in whole workflows: what runs again, what core makes of them, and what they say about themselves."""

import pytest
import torch
from harness import Graph
from scenes import save_picture
from small_models import install_folder


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


def test_changing_the_seed_runs_only_the_sampler_and_what_follows(server, folder):
    def run(seed: int):
        graph = Graph()
        loaded = graph.add("OmniGen2LoadFolder", folder=folder, dtype="auto")
        encoded = graph.add(
            "OmniGen2Encode",
            clip=loaded[1],
            prompt="a red cube",
            negative_prompt="",
            width=64,
            height=64,
            match_reference=True,
            max_pixels=0,
            max_side=0,
            encoder_sees_images=False,
            batch_size=4,
        )
        sampled = graph.add(
            "KSampler",
            model=loaded[0],
            positive=encoded[0],
            negative=encoded[2],
            latent_image=encoded[3],
            seed=seed,
            steps=2,
            cfg=2.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )
        decoded = graph.add("VAEDecode", vae=loaded[2], samples=sampled[0])
        saved = graph.add("TestSaveTensors", name="seed", image=decoded[0])
        result = server.run(graph)
        return result.executed, [str(sampled), str(decoded), str(saved)], server.tensors(result, saved)["image"]

    *_, first = run(1)
    executed, expected, second = run(2)
    assert executed == expected
    assert first.shape == (4, 64, 64, 3)
    assert not torch.equal(first, second)


def test_text_generation_of_core_is_served(server, folder):
    picture = save_picture(server, "generation.png", 64, 64, seed=20)

    def write(seed: int, sampling: str, image: bool):
        graph = Graph()
        loaded = graph.add("OmniGen2LoadFolder", folder=folder, dtype="auto")
        more = {"image": graph.add("LoadImage", image=picture)[0]} if image else {}
        options = {"sampling_mode": sampling}
        if sampling == "on":
            options |= {
                "sampling_mode.temperature": 1.0,
                "sampling_mode.top_k": 0,
                "sampling_mode.top_p": 1.0,
                "sampling_mode.min_p": 0.0,
                "sampling_mode.repetition_penalty": 1.0,
                "sampling_mode.seed": seed,
            }
        node = graph.add("TextGenerate", clip=loaded[1], prompt="what is this?", max_length=6, **options, **more)
        shown = graph.add("PreviewAny", source=node[0])
        return server.run(graph).ui[shown]["text"][0]

    assert write(0, "off", False) == write(1, "off", False)
    assert write(1, "on", True) == write(1, "on", True)
    assert write(1, "on", True) != write(2, "on", True)


def test_the_schema_says_what_everything_is_for(server):
    for name in (
        "OmniGen2Encode",
        "OmniGen2LoadFolder",
        "OmniGen2LoadEncoder",
        "OmniGen2LoadVAE",
        "OmniGen2LoadDiffusionModel",
    ):
        node = server.node(name)
        assert all(tip for tip in node["output_tooltips"]), name
        for group in ("required", "optional"):
            for key, (_, options) in node["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{key}"
