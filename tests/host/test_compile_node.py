"""OmniGen2 Compile in a real server: the same pictures, few graphs for everything, and what it refuses."""

import pytest
from native_model import install_native
from scenes import Scene, compare, difference, save_picture
from small_models import install_folder
from test_accelerate_node import READOUT
from test_compositions import save_lora

CLOSE = 1e-4
GRAPHS = 5
"""Of a model, whatever is drawn with it one at a time: see tests/test_compiled.py."""


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def pictures(server):
    return [save_picture(server, "compiled.png", 64, 48, seed=41)]


def compiled(scene: Scene) -> None:
    scene.model = scene.add("OmniGen2Compile", model=scene.model)[0]


def graphs(server, scene: Scene, latent: list) -> int:
    """How many graphs the server has once this latent is there."""
    node = scene.add("TestCompiledGraphs", after=latent)
    return server.records(server.run(scene.graph), node).get("unique_graphs", 0)


def test_everything_a_user_changes_is_computed_right_by_the_same_few_graphs(server, folder, pictures):
    first = Scene(folder)
    before = graphs(server, first, first.latent)
    compiled(first)
    made = graphs(server, first, first.sample(steps=1))
    # One more at most, where two sizes happened to be the same.
    assert GRAPHS <= made - before <= GRAPHS + 1
    lora = save_lora(server, "compiled.safetensors")
    for scene, settings in (
        (Scene(folder), {"seed": 77}),
        (Scene(folder, width=96, height=80, prompt="a much longer prompt about a blue ball"), {"steps": 3}),
        (Scene(folder, pictures), {}),
    ):
        plain = scene.model
        eager = scene.sample(**settings)
        compiled(scene)
        latents = [scene.sample(**settings), eager]
        for strength in (0.8, 0.4):
            for start in (scene.model, plain):
                model = scene.add("OmniGen2LoadLoRA", model=start, lora_name=lora, strength=strength)[0]
                latents.append(scene.sample(**settings, model=model))
        found = compare(server, scene, *latents)
        for got, want in zip(found[::2], found[1::2]):
            assert difference(got, want) < CLOSE
        assert graphs(server, scene, latents[0]) == made


# A seed each: what the server has computed before, it does not tell of again.
@pytest.mark.parametrize("order, seed", [("accelerate first", 1), ("accelerate last", 2)])
def test_what_is_accelerated_is_decided_as_without_it(server, folder, pictures, order, seed):
    scene = Scene(folder, pictures)
    plain, settings = scene.model, {"context_refresh": 2, "guidance_every": 2}
    scene.accelerate(**settings)
    eager = scene.sample(seed=seed)
    scene.model = plain
    if order == "accelerate last":
        compiled(scene)
    scene.accelerate(**settings)
    if order == "accelerate first":
        compiled(scene)
    latents = [scene.sample(seed=seed), eager]
    nodes = [scene.save(latent=latent) for latent in latents]
    result = server.run(scene.graph)
    got, want = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(got, want) < CLOSE
    lines = [result.ui[latent[0]][READOUT][0].rpartition(" · ")[0] for latent in latents]
    assert lines[0] == lines[1] and "skipped" in lines[0]


def test_a_batch_and_core_s_sampler_are_computed_right(server, folder):
    scene = Scene(folder, batch=2)
    plain = scene.ksampler(steps=1)
    compiled(scene)
    got, want = compare(server, scene, scene.ksampler(steps=1), plain)
    assert difference(got, want) < CLOSE


@pytest.mark.parametrize("order", ["core's first", "core's last"])
def test_torch_compile_model_beside_it_is_refused_in_a_sentence(server, folder, order):
    scene = Scene(folder)

    def core_s():
        scene.model = scene.add("TorchCompileModel", model=scene.model, backend="inductor")[0]

    if order == "core's first":
        core_s()
    compiled(scene)
    if order == "core's last":
        core_s()
    message = scene.fails(server, scene.sample())
    assert "TorchCompileModel and OmniGen2 Compile are both on this MODEL" in message
    assert "remove TorchCompileModel" in message


def test_a_model_of_core_s_loader_is_refused_in_a_sentence(server, folder, golden):
    scene = Scene(folder)
    scene.model = scene.add("TestLoadNativeModel", file=install_native(server.models, golden))[0]
    compiled(scene)
    message = scene.fails(server, scene.sample())
    assert "ComfyUI's own loader" in message and "OmniGen2 Load Diffusion Model" in message


def test_a_cancelled_run_leaves_the_next_one_as_it_was(server, folder):
    scene = Scene(folder)
    eager = scene.sample(seed=80)
    compiled(scene)
    long = Scene(folder)
    compiled(long)
    latent = long.sample(seed=81, steps=500)
    long.save(latent=latent)
    heard = []

    def interrupt(kind, data, result):
        if kind == "progress" and data["max"] == 500:
            heard.append(data["value"])
            if len(heard) == 1:
                server.interrupt()

    assert server.run(long.graph, on_event=interrupt, check=False).status == "interrupted"
    got, want = compare(server, scene, scene.sample(seed=80), eager)
    assert difference(got, want) < CLOSE
