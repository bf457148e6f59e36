"""OmniGen2 Accelerate in a real server: the same decisions under every sampler, nothing leaks, what it refuses."""

import pytest
import torch
from native_model import install_native
from safetensors.torch import load_file, save_file
from scenes import STEPS, Scene, compare, difference, save_picture
from small_models import install_folder
from test_compositions import FIXED, NEARLY, SAME, save_lora
from test_masks_and_noise import LEFT, RIGHT, masked_latent

READOUT = "omnigen2_readout"
METHODS = {
    "context_refresh": {"context_refresh": 3},
    "guidance_every": {"guidance_every": 2},
    "disagreement": {"disagreement": 0.5},
    "first_block": {"first_block": 1.0},
    "teacache": {"teacache": 0.2},
    "taylorseer": {"taylorseer": 2},
    "together": {"context_refresh": 2, "guidance_every": 2, "first_block": 1.0},
}


@pytest.fixture(scope="module")
def folder(server, golden):
    """The golden model, changing less from step to step, so that there is something to skip."""
    name, weight = install_folder(server.models, golden, "tests/slow"), "time_caption_embed.timestep_embedder.linear_2.weight"
    for file in (server.models / "diffusers" / name / "transformer").glob("*.safetensors"):
        weights = load_file(file)
        if weight in weights:
            weights[weight] *= 0.0625
            save_file(weights, file)
    return name


@pytest.fixture(scope="module")
def pictures(server):
    return [save_picture(server, "accelerated.png", 64, 48, seed=40)]


# What it does, under every sampler


@pytest.mark.parametrize("preset", ["exact", "custom"])
def test_with_nothing_on_it_changes_nothing(server, folder, pictures, preset):
    scene = Scene(folder, pictures)
    plain = scene.sample()
    scene.accelerate(preset)
    accelerated, plain = compare(server, scene, scene.sample(), plain)
    assert difference(accelerated, plain) == 0


@pytest.mark.parametrize("name", METHODS)
def test_sampler_custom_sampler_and_core_s_guiders_decide_alike(server, folder, pictures, name):
    settings = {"steps": 7} if name == "taylorseer" else {}
    scene = Scene(folder, pictures)
    plain = scene.sample(**settings)
    scene.accelerate(**METHODS[name])
    sigmas = scene.sigmas(**settings)
    latents = [scene.sample(**settings), scene.custom(scene.guider(), sigmas=sigmas), scene.custom(scene.dual_guider(), sigmas=sigmas)]
    own, custom, dual, plain = compare(server, scene, *latents, plain)
    assert difference(own, plain) > 1e-4
    assert difference(own, custom) < SAME and difference(own, dual) < SAME


@pytest.mark.parametrize("name", ["guidance_every", "first_block"])
def test_ksampler_decides_as_our_sampler(server, folder, name):
    scene = Scene(folder)
    scene.accelerate(**METHODS[name])
    core, own = compare(server, scene, scene.ksampler(), scene.sample(**FIXED))
    assert difference(core, own) < NEARLY


@pytest.mark.parametrize("sampler", ["sample", "ksampler"])
def test_a_branch_that_is_reused_is_not_evaluated(server, folder, sampler):
    scene = Scene(folder)
    scene.count()
    scene.accelerate(guidance_every=2)
    latent = scene.sample() if sampler == "sample" else scene.ksampler()
    assert sum(scene.evaluations(server, latent)) == STEPS + STEPS // 2


def test_core_s_samplers_take_an_accelerated_model(server, folder, pictures):
    scene = Scene(folder, pictures)
    scene.accelerate("turbo")
    for latent in compare(server, scene, *(scene.custom(scene.guider(), sampler=name) for name in ("heun", "res_multistep", "uni_pc"))):
        assert torch.isfinite(latent).all()


def test_a_lora_before_or_after_it_is_the_same(server, folder):
    name = save_lora(server, "accelerated.safetensors")
    scene = Scene(folder)
    model, latents = scene.model, []
    for lora_first in (True, False):
        scene.model = model
        if not lora_first:
            scene.accelerate(context_refresh=2, guidance_every=2)
        scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name=name, strength=0.8)[0]
        if lora_first:
            scene.accelerate(context_refresh=2, guidance_every=2)
        latents.append(scene.sample())
    before, after = compare(server, scene, *latents)
    assert difference(before, after) == 0


def test_the_model_that_comes_in_stays_as_it_was(server, folder):
    scene = Scene(folder)
    model = scene.model
    scene.accelerate(first_block=1.0)
    accelerated = scene.sample()
    scene.model = model
    scene.count()
    plain = scene.sample()
    scene.save(latent=accelerated)
    assert sum(scene.evaluations(server, plain)) == 2 * STEPS
    accelerated, plain = compare(server, scene, accelerated, plain)
    assert difference(accelerated, plain) > 0


def test_the_sampler_says_what_was_computed_and_skipped(server, folder, pictures):
    scene = Scene(folder, pictures)
    plain = scene.sample()
    scene.accelerate(context_refresh=2, guidance_every=2)
    saving = scene.sample()
    turbo_model = scene.add("OmniGen2Accelerate", model=scene.model, preset="turbo")
    for latent in (plain, saving):
        scene.save(latent=latent)
    scene.model = turbo_model[0]
    scene.save(latent=scene.sample(steps=1))
    ui = server.run(scene.graph).ui
    (line,) = ui[plain[0]][READOUT]
    assert line.startswith(f"{3 * STEPS} evaluations · ") and line.endswith(" s")
    (line,) = ui[saving[0]][READOUT]
    # The prompt's branch whole at every other step; the others at every other step, of which every other is whole.
    assert line.startswith(f"{3 * STEPS} evaluations: 4 in full, 4 of the picture's tokens alone, 4 skipped · ")
    assert any("turbo was chosen for" in line for line in ui[turbo_model][READOUT])


def test_what_is_kept_gets_its_room_in_memory(server, folder, pictures):
    found = []
    for settings in ({"first_block": 1.0}, {"context_refresh": 2}):
        scene = Scene(folder, pictures)
        scene.accelerate(**settings)
        recorded = scene.add("TestRecordRoom", model=scene.model)
        scene.model, scene.record = recorded[0], recorded[1]
        found += scene.evaluations(server, scene.sample(steps=1), "pictures")
    assert found[0] == 1 < found[1]


# With nodes that reach into the model


def test_layers_that_another_node_replaces_are_all_computed_and_counted(server, folder):
    scene = Scene(folder)
    model, latents = scene.model, []
    for settings in ({}, {"context_refresh": 4, "first_block": 1.0}):
        scene.model = model
        scene.accelerate(**settings)
        # Its patches stand in every evaluation, and change nothing.
        scene.model = scene.add("TestReplaceBlocks", model=scene.model)[0]
        latents.append(scene.sample())
    nodes = [scene.save(latent=latent) for latent in latents]
    result = server.run(scene.graph)
    plain, accelerated = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(plain, accelerated) == 0
    for latent in latents:
        assert result.ui[latent[0]][READOUT][0].startswith(f"{2 * STEPS} evaluations · ")


def test_what_is_compiled_whole_has_all_its_layers_and_is_not_counted(start_server, golden):
    server = start_server("--use-pytorch-cross-attention")
    scene = Scene(install_folder(server.models, golden))
    model, latents = scene.model, []
    for settings in ({}, {"context_refresh": 4, "first_block": 1.0}, {"guidance_every": 3}):
        scene.model = model
        scene.accelerate(**settings)
        scene.model = scene.add("TorchCompileModel", model=scene.model, backend="cudagraphs")[0]
        latents.append(scene.sample(steps=3))
    nodes = [scene.save(latent=latent) for latent in latents]
    result = server.run(scene.graph)
    plain, layers, guidance = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(plain, layers) < SAME and difference(plain, guidance) > 1e-4
    for latent in latents:
        assert "evaluations" not in result.ui[latent[0]][READOUT][0]


def test_what_a_mask_keeps_is_kept(server, folder, pictures):
    scene = Scene(folder, pictures)
    latent, given = masked_latent(server, scene, 1)
    plain = scene.sample(latent=latent)
    scene.accelerate(**METHODS["together"])
    accelerated, plain = compare(server, scene, scene.sample(latent=latent), plain)
    assert difference(accelerated[..., LEFT], given[..., LEFT]) < SAME
    assert difference(accelerated[..., RIGHT], plain[..., RIGHT]) > 1e-4


def test_weights_that_may_change_from_step_to_step_are_not_cached(server, folder):
    name = save_lora(server, "accelerated_hook.safetensors")
    scene = Scene(folder)
    hooks = scene.add("CreateHookLoraModelOnly", lora_name=name, strength_model=1.0)[0]
    hooked = scene.add(
        "ConditioningSetProperties", cond_NEW=scene.positive, strength=1.0, set_cond_area="default", hooks=hooks
    )[0]
    plain = scene.sample(positive=hooked)
    scene.accelerate(context_refresh=4, guidance_every=4, first_block=1.0)
    accelerated, plain = compare(server, scene, scene.sample(positive=hooked), plain)
    assert difference(accelerated, plain) < SAME


def test_prompts_for_parts_of_the_run_keep_their_own_differences(server, folder):
    scene = Scene(folder)
    halves = [
        scene.add("ConditioningSetTimestepRange", conditioning=scene.text(text), start=start, end=start + 0.5)[0]
        for text, start in (("a red cube", 0.0), ("a blue ball", 0.5))
    ]
    both = scene.add("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1])[0]
    plain = scene.sample(positive=both)
    scene.accelerate(guidance_every=4)
    accelerated, plain = compare(server, scene, scene.sample(positive=both), plain)
    assert difference(accelerated, plain) < SAME


# Leaks, and the same tests with the leak made on purpose


def leaking(scene: Scene, between: str) -> None:
    scene.model = scene.add("TestLeak", model=scene.model, between=between)[0]


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("name", ["context_refresh", "guidance_every", "first_block"])
def test_a_run_remembers_nothing_of_the_one_before(server, folder, name, leak):
    settings = {"guidance_every": 3} if name == "guidance_every" else METHODS[name]
    prompt = f"alone {name} {leak}"
    alone = Scene(folder, prompt=prompt)
    alone.accelerate(**settings)
    expected = alone.run(server, alone.sample(steps=5))

    scene = Scene(folder, prompt=prompt)
    scene.accelerate(**settings)
    if leak:
        leaking(scene, "runs")
    # Two samplers in a row on one MODEL; the second starts from what the first gives, so that it comes after it.
    first = scene.sample(steps=5, seed=77, positive=scene.text(prompt[::-1]))
    after = scene.add("TestScaleLatent", latent=first, factor=0.0)[0]
    second = scene.run(server, scene.sample(steps=5, latent=after))
    assert (difference(second, expected) > 1e-4) is leak


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("name", ["context_refresh", "first_block"])
def test_a_branch_remembers_nothing_of_another(server, folder, name, leak):
    scene = Scene(folder)
    scene.accelerate(**METHODS[name])
    alone = scene.ksampler(cfg=1.0)
    if leak:
        leaking(scene, "branches")
    scene.model = scene.add("TestOnlyPrompt", model=scene.model)[0]
    beside, alone = compare(server, scene, scene.ksampler(cfg=3.0), alone)
    assert (difference(beside, alone) > 1e-4) is leak


@pytest.mark.parametrize("leak", [False, True])
def test_an_item_of_a_batch_sees_nothing_of_another(server, folder, leak):
    scene = Scene(folder, batch=2)
    other = scene.text("a much longer prompt about a blue ball")
    batch = scene.add("TestBatchConditionings", first=scene.positive, second=other)[0]
    scene.accelerate(context_refresh=4)
    single = scene.add("LatentFromBatch", samples=scene.latent, batch_index=1, length=1)[0]
    alone = scene.sample(positive=other, latent=single, text_guidance=1.0)
    if leak:
        leaking(scene, "items")
    both, alone = compare(server, scene, scene.sample(positive=batch, text_guidance=1.0), alone)
    assert (difference(both[1:], alone) > 1e-3) is leak


# What it refuses


@pytest.mark.parametrize("order", ["easycache first", "easycache last"])
@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_easycache_beside_it_is_refused_in_a_sentence(server, folder, order, node):
    scene = Scene(folder)

    def easycache():
        scene.model = scene.add(node, model=scene.model, reuse_threshold=0.2, start_percent=0.1, end_percent=0.95, verbose=False)[0]

    if order == "easycache first":
        easycache()
    scene.accelerate("balanced")
    if order == "easycache last":
        easycache()
    message = scene.fails(server, scene.sample())
    assert f"{node} and OmniGen2 Accelerate are both on this MODEL" in message and "set OmniGen2 Accelerate to exact" in message


def test_easycache_works_where_it_is_set_to_exact(server, folder):
    scene = Scene(folder)
    scene.accelerate("exact")
    scene.model = scene.add("EasyCache", model=scene.model, reuse_threshold=3.0, start_percent=0.1, end_percent=0.95, verbose=False)[0]
    mark = len(server.log)
    scene.run(server, scene.sample(steps=8))
    assert "EasyCache - skipped" in server.log_after(mark) and "skipped 0/8" not in server.log_after(mark)


def test_a_model_of_core_s_loader_is_refused_in_a_sentence(server, folder, golden):
    scene = Scene(folder)
    scene.model = scene.add("TestLoadNativeModel", file=install_native(server.models, golden))[0]
    scene.accelerate("balanced")
    message = scene.fails(server, scene.sample())
    assert "ComfyUI's own loader" in message and "OmniGen2 Load Diffusion Model" in message


def test_methods_for_the_same_layers_are_refused_together(server, folder):
    scene = Scene(folder)
    scene.accelerate(first_block=0.1, teacache=0.1)
    assert "first_block and teacache stand in for the same layers" in scene.fails(server, scene.sample())
