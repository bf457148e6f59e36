"""OmniGen2 Load LoRA in a real server: every naming, strength, refusals, our MODEL and ComfyUI's own."""

import pytest
import torch
from make_checkpoints import golden_weights
from native_model import install_native
from safetensors.torch import load_file, save_file
from scenes import Scene, difference
from small_models import install_folder

NAMINGS = {
    "authors": lambda key: key,
    "bare": lambda key: key.removeprefix("transformer."),
    "host": lambda key: "diffusion_model." + key.removeprefix("transformer."),
    "peft": lambda key: "base_model.model." + key.removeprefix("transformer."),
    "adapter_name": lambda key: key.removeprefix("transformer.").replace(".weight", ".default.weight"),
    "kohya": lambda key: _kohya(key.removeprefix("transformer.")),
}


def _kohya(key: str) -> str:
    module, half = key.split(".lora_")
    return f"lora_unet_{module.replace('.', '_')}.lora_{'down' if half.startswith('A') else 'up'}.weight"


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def loras(server, golden):
    """The golden LoRA in every naming, by file name."""
    weights = load_file(golden / "lora_weights.safetensors")
    for name, rename in NAMINGS.items():
        save_file({rename(key): tensor for key, tensor in weights.items()}, server.models / "loras" / f"{name}.safetensors")
    return [f"{name}.safetensors" for name in NAMINGS]


def sampled(server, scene: Scene, *loras: tuple[str, float]) -> torch.Tensor:
    for name, strength in loras:
        scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name=name, strength=strength)[0]
    return scene.run(server, scene.sample(steps=1))


def test_every_naming_gives_the_same_picture(server, folder, loras):
    latents = [sampled(server, Scene(folder), (name, 1.0)) for name in loras]
    plain = sampled(server, Scene(folder))
    assert difference(latents[0], plain) > 0.1
    assert max(difference(latent, latents[0]) for latent in latents) < 1e-5


def test_strength_counts(server, folder, loras):
    plain, none = sampled(server, Scene(folder)), sampled(server, Scene(folder), (loras[0], 0.0))
    half, twice_half = sampled(server, Scene(folder), (loras[0], 0.5)), sampled(server, Scene(folder), (loras[0], 0.5), (loras[1], 0.5))
    whole = sampled(server, Scene(folder), (loras[0], 1.0))
    assert difference(none, plain) < 1e-5
    assert difference(half, plain) > 0.01 and difference(half, whole) > 0.01
    assert difference(twice_half, whole) < 1e-3


def test_the_model_before_the_lora_stays_as_it_was(server, folder, loras):
    scene = Scene(folder)
    plain = scene.sample(steps=1)
    scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name=loras[0], strength=1.0)[0]
    nodes = [scene.save(latent=latent) for latent in (scene.sample(steps=1), plain)]
    result = server.run(scene.graph)
    changed, before = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(before, sampled(server, Scene(folder))) == 0
    assert difference(changed, before) > 0.1


def test_changing_only_the_seed_does_not_load_it_again(server, folder, loras):
    def run(seed):
        scene = Scene(folder, prompt="seeds and a LoRA")
        scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name=loras[0], strength=1.0)[0]
        sampled = scene.sample(steps=1, seed=seed)
        node = scene.save(latent=sampled)
        return server.run(scene.graph), sampled[0], node

    run(1)
    result, sampler, saved = run(2)
    assert sorted(result.executed) == sorted([sampler, saved])


def test_core_s_own_model_takes_it_too(server, golden):
    native = install_native(server.models, golden)
    change = {
        f"transformer.layers.0.attn.to_q.lora_{half}.weight": 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(8))
        for half, shape in (("A", (4, 96)), ("B", (96, 4)))
    }
    save_file(change, server.models / "loras" / "for_native.safetensors")
    folder = install_folder(server.models, golden)
    latents = []
    for load in ("TestLoadNativeModel", "OmniGen2LoadDiffusionModel"):
        scene = Scene(folder)
        inputs = {"file": native} if load == "TestLoadNativeModel" else {"unet_name": native, "dtype": "fp32"}
        scene.model = scene.add(load, **inputs)[0]
        latents.append((sampled(server, scene), sampled(server, scene, ("for_native.safetensors", 1.0))))
    (core_plain, core), (own_plain, own) = latents
    assert difference(core, core_plain) > 1e-2
    assert difference(core, own) < 1e-4 * max(1.0, own.abs().max().item())


def test_core_s_lora_loader_changes_nothing_with_the_authors_names(server, folder, loras):
    """The reason for this node."""
    scene = Scene(folder)
    plain = scene.sample(steps=1)
    scene.model = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name=loras[0], strength_model=1.0)[0]
    nodes = [scene.save(latent=latent) for latent in (scene.sample(steps=1), plain)]
    result = server.run(scene.graph)
    core, plain = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(core, plain) < 1e-5


def message_for(server, folder, name: str, tensors: dict) -> str:
    save_file(tensors, server.models / "loras" / name)
    scene = Scene(folder)
    scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name=name, strength=1.0)[0]
    return scene.fails(server, scene.sample(steps=1))


def test_a_lora_of_another_model_is_refused_and_its_node_named(server, folder):
    halves = {"lora_A": torch.zeros(4, 64), "lora_B": torch.zeros(64, 4)}
    flux = {f"transformer.single_transformer_blocks.0.attn.to_q.{half}.weight": value for half, value in halves.items()}
    message = message_for(server, folder, "flux.safetensors", flux)
    assert "flux.safetensors" in message and "FLUX" in message and "LoraLoaderModelOnly" in message


def test_a_lora_for_another_size_is_refused(server, folder):
    halves = {"lora_A": torch.zeros(4, 2520), "lora_B": torch.zeros(2520, 4)}
    published = {f"transformer.layers.0.attn.to_q.{half}.weight": value for half, value in halves.items()}
    message = message_for(server, folder, "published.safetensors", published)
    assert "[2520, 2520]" in message and "[96, 96]" in message


def test_a_model_file_in_the_lora_folder_is_refused(server, folder, golden):
    message = message_for(server, folder, "a_model.safetensors", golden_weights(golden, "transformer"))
    assert "not a LoRA" in message


def test_keys_that_match_nothing_are_noted(server, folder, golden):
    weights = load_file(golden / "lora_weights.safetensors")
    extra = {f"text_encoder.layers.0.q_proj.lora_{half}.weight": torch.zeros(4, 4) for half in "AB"}
    save_file(weights | extra, server.models / "loras" / "extra.safetensors")
    scene = Scene(folder)
    loaded = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name="extra.safetensors", strength=1.0)
    scene.model = loaded[0]
    scene.save(latent=scene.sample(steps=1))
    notes = server.run(scene.graph).ui[loaded]["omnigen2_notes"]
    assert len(notes) == 1 and "2 of the file's keys" in notes[0]


def test_a_file_that_is_gone_is_refused_before_anything_runs(server, folder):
    from harness import Refused

    scene = Scene(folder)
    scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name="gone.safetensors", strength=1.0)[0]
    with pytest.raises(Refused, match="gone.safetensors"):
        scene.run(server, scene.sample(steps=1))
