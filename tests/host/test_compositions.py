"""Our nodes with core's: every composition that a workflow may hold runs in the real server and gives the right numbers."""

import pytest
import torch
from built_in_graphs import assert_shows, node_of, rendered
from core_templates import api_of_template
from native_model import install_native
from PIL import ImageOps
from safetensors.torch import save_file
from scenes import HEIGHT, STEPS, WIDTH, Scene, compare, difference, save_latent, save_picture
from small_models import install_folder
from template_parts import BUILT_IN, built_in_drawing

from omnigen2_core.nano.world import COLOURS

SAME = 1e-4
# KSampler looks its noise levels up in a table of 1000; STEPS divides that, so only rounding is left.
NEARLY = 1e-3
FIXED = {"shift": "fixed", "shift.value": 2.6}


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def native(server, golden):
    return install_native(server.models, golden)


@pytest.fixture(scope="module")
def pictures(server):
    return [save_picture(server, f"composition_{i}.png", 64, 48 + 16 * i, seed=10 + i) for i in range(2)]


# Samplers and guiders


def test_ksampler_is_our_sampler_with_its_fixed_shift(server, folder):
    scene = Scene(folder)
    core, own = compare(server, scene, scene.ksampler(), scene.sample(**FIXED))
    assert difference(core, own) < NEARLY


def test_core_s_dual_guider_is_ours_for_an_edit(server, folder, pictures):
    scene = Scene(folder, pictures[:1])
    core, own = compare(server, scene, scene.custom(scene.dual_guider()), scene.custom(scene.guider()))
    assert difference(core, own) < SAME


def test_core_s_dual_guider_costs_text_to_image_two_evaluations_a_step(server, folder):
    scene = Scene(folder)
    scene.count()
    guider = scene.dual_guider(middle=scene.negative)
    assert sum(scene.evaluations(server, scene.custom(guider))) == 2 * STEPS
    core, own = compare(server, scene, scene.custom(guider), scene.custom(scene.guider()))
    assert difference(core, own) < SAME


@pytest.mark.parametrize("sampler, evaluations", [("res_multistep", STEPS), ("dpmpp_2m", STEPS), ("heun", 2 * STEPS - 1)])
def test_core_s_samplers_take_our_guider_and_model(server, folder, pictures, sampler, evaluations):
    scene = Scene(folder, pictures[:1])
    scene.count()
    latent = scene.custom(scene.guider(), sampler=sampler)
    assert sum(scene.evaluations(server, latent)) == 3 * evaluations
    custom, euler = compare(server, scene, latent, scene.custom(scene.guider()))
    assert torch.isfinite(custom).all() and difference(custom, euler) > 1e-3


def test_heun_is_guided_by_the_step_that_it_looks_ahead_from(server, folder):
    scene = Scene(folder)
    scene.count()
    latent = scene.custom(scene.guider(guidance_start=0.0, guidance_end=0.0), sampler="heun")
    # Guided at step 0; its look-ahead, and everything after, is at later levels.
    assert sum(scene.evaluations(server, latent)) == 2 + 1 + (2 * (STEPS - 1) - 1)


def test_a_batch_of_four_is_four_single_pictures(server, folder, pictures):
    scene = Scene(folder, pictures[:1], batch=4)
    four = scene.run(server, scene.sample())
    assert four.shape[0] == 4
    single = Scene(folder, pictures[:1], batch=4)
    chosen = single.add("LatentFromBatch", samples=single.latent, batch_index=2, length=1)[0]
    assert difference(single.run(server, single.sample(latent=chosen)), four[2:3]) < SAME


def test_an_img2img_run_of_ksampler_is_ours(server, folder):
    scene = Scene(folder)
    given = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(4))
    latent = scene.add("TestLoadLatent", file=save_latent(server, "img2img.safetensors", given))[0]
    core, own = compare(
        server, scene, scene.ksampler(latent_image=latent, denoise=0.5), scene.sample(latent=latent, denoise=0.5, **FIXED)
    )
    assert difference(core, own) < NEARLY


# Model nodes


def test_model_sampling_aura_flow_sets_ksampler_s_shift(server, folder):
    scene = Scene(folder)
    own = scene.sample(shift="fixed", **{"shift.value": 4.0})
    scene.model = scene.add("ModelSamplingAuraFlow", model=scene.model, shift=4.0)[0]
    patched, own = compare(server, scene, scene.ksampler(), own)
    assert difference(patched, own) < NEARLY


def test_model_sampling_sd3_does_not_break_the_time(server, folder):
    scene = Scene(folder)
    own = scene.sample(shift="fixed", **{"shift.value": 3.0})
    scene.model = scene.add("ModelSamplingSD3", model=scene.model, shift=3.0)[0]
    patched, own = compare(server, scene, scene.ksampler(), own)
    assert difference(patched, own) < NEARLY


@pytest.mark.parametrize("steps_of", ["ours", "core's"])
def test_easycache_skips_steps(server, folder, steps_of):
    def latent(scene):
        return scene.sample(steps=8) if steps_of == "ours" else scene.ksampler(steps=8)

    scene = Scene(folder)
    plain = latent(scene)
    scene.model = scene.add(
        "EasyCache", model=scene.model, reuse_threshold=3.0, start_percent=0.1, end_percent=0.95, verbose=False
    )[0]
    mark = len(server.log)
    cached, plain = compare(server, scene, latent(scene), plain)
    skipped = [line for line in server.log_after(mark).splitlines() if "EasyCache - skipped" in line]
    assert skipped and " 0/8" not in skipped[-1]
    assert torch.isfinite(cached).all() and difference(cached, plain) > 0


def test_torch_compile_gives_the_same_numbers(start_server, golden):
    # ComfyUI's default attention on a CPU asks for the free memory, which breaks the compiled graph at every block.
    server = start_server("--use-pytorch-cross-attention")
    scene = Scene(install_folder(server.models, golden))
    scene.model = scene.add("OmniGen2LoadDiffusionModel", unet_name=install_native(server.models, golden), dtype="fp32")[0]
    plain = scene.sample(steps=1, text_guidance=1.0)
    scene.model = scene.add("TorchCompileModel", model=scene.model, backend="cudagraphs")[0]
    compiled = scene.sample(steps=1, text_guidance=1.0)
    graphs = scene.add("TestCompiledGraphs", after=compiled)
    nodes = [scene.save(latent=latent) for latent in (compiled, plain)]
    result = server.run(scene.graph)
    assert difference(*(server.tensors(result, node)["latent"] for node in nodes)) < SAME
    stats = server.records(result, graphs)
    assert stats.get("unique_graphs", 0) > 0 and stats["calls_captured"] > 50, stats


def save_lora(server, name: str) -> str:
    """A LoRA for the golden model under bare names, which core maps too."""
    change = {
        f"layers.0.attn.to_q.lora_{half}.weight": 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(6))
        for half, shape in (("A", (4, 96)), ("B", (96, 4)))
    }
    save_file(change, server.models / "loras" / name)
    return name


def test_core_s_lora_loader_takes_bare_names(server, folder):
    name = save_lora(server, "bare_names.safetensors")
    scene = Scene(folder)
    plain = scene.sample()
    model = scene.model
    scene.model = scene.add("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.8)[0]
    core = scene.sample()
    scene.model = scene.add("OmniGen2LoadLoRA", model=model, lora_name=name, strength=0.8)[0]
    core, own, plain = compare(server, scene, core, scene.sample(), plain)
    assert difference(core, own) == 0
    assert difference(core, plain) > 1e-2


def test_a_lora_hooked_to_a_conditioning_changes_only_that_conditioning(server, folder):
    name = save_lora(server, "hooked.safetensors")
    scene = Scene(folder)
    hooks = scene.add("CreateHookLoraModelOnly", lora_name=name, strength_model=1.0)[0]
    hooked = scene.add(
        "ConditioningSetProperties", cond_NEW=scene.positive, strength=1.0, set_cond_area="default", hooks=hooks
    )[0]
    only_hooked, guided = scene.sample(text_guidance=1.0, steps=2, positive=hooked), scene.sample(steps=2, positive=hooked)
    scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name=name, strength=1.0)[0]
    only_loaded, both = scene.sample(text_guidance=1.0, steps=2), scene.sample(steps=2)
    only_hooked, guided, only_loaded, both = compare(server, scene, only_hooked, guided, only_loaded, both)
    assert difference(only_hooked, only_loaded) < SAME
    # The negative prompt is predicted without the LoRA.
    assert difference(guided, both) > 1e-2


def test_skip_layer_guidance_reaches_our_layers(server, folder):
    scene = Scene(folder)
    plain = scene.sample()
    scene.model = scene.add(
        "SkipLayerGuidanceDiT", model=scene.model, double_layers="", single_layers="1", scale=2.0, start_percent=0.0,
        end_percent=1.0, rescaling_scale=0.0,
    )[0]  # fmt: skip
    guided, plain = compare(server, scene, scene.sample(), plain)
    assert torch.isfinite(guided).all() and difference(guided, plain) > 1e-2


# Conditionings


def test_core_s_text_node_feeds_our_sampler_and_our_encode_feeds_ksampler(server, folder):
    scene = Scene(folder, prompt="a red cube", negative="blurry")
    positive, negative = scene.text("a red cube"), scene.text("blurry")
    by_core, by_ours = compare(
        server, scene, scene.sample(positive=positive, negative=negative, negative_ref=None), scene.sample()
    )
    assert difference(by_core, by_ours) < SAME
    by_core, by_ours = compare(server, scene, scene.ksampler(positive=positive, negative=negative), scene.ksampler())
    assert difference(by_core, by_ours) < SAME


def test_reference_latent_is_our_reference(server, folder, pictures):
    scene = Scene(folder, pictures)
    text, latents = scene.text("a red cube"), []
    for name in pictures:
        picture = scene.add("LoadImage", image=name)[0]
        latents.append(scene.add("VAEEncode", pixels=picture, vae=scene.vae)[0])
    for latent in latents:
        text = scene.add("ReferenceLatent", conditioning=text, latent=latent)[0]
    by_core, by_ours = compare(server, scene, scene.sample(positive=text, negative_ref=None), scene.sample())
    assert difference(by_core, by_ours) < 1e-3


def test_concatenated_text_is_read_whole_though_its_mask_is_short(server, folder):
    scene = Scene(folder)
    joined = scene.add("ConditioningConcat", conditioning_to=scene.positive, conditioning_from=scene.negative)[0]
    own, core, first = compare(
        server, scene, scene.sample(positive=joined, **FIXED), scene.ksampler(positive=joined), scene.sample(**FIXED)
    )
    assert difference(own, core) < NEARLY
    assert difference(own, first) > 1e-2


def test_zeroed_averaged_and_combined_conditionings_are_sampled(server, folder):
    scene = Scene(folder)
    zeroed = scene.add("ConditioningZeroOut", conditioning=scene.negative)[0]
    averaged = scene.add(
        "ConditioningAverage", conditioning_to=scene.positive, conditioning_from=scene.negative, conditioning_to_strength=1.0
    )[0]  # fmt: skip
    twice = scene.add("ConditioningCombine", conditioning_1=scene.positive, conditioning_2=scene.positive)[0]
    plain, zero, average, combined = compare(
        server, scene, scene.sample(), scene.sample(negative=zeroed, negative_ref=None),
        scene.sample(positive=averaged), scene.sample(positive=twice),
    )  # fmt: skip
    assert difference(zero, plain) > 1e-2
    assert difference(average, plain) < SAME
    assert difference(combined, plain) < SAME


def test_a_timestep_range_changes_the_prompt_on_the_way(server, folder):
    scene = Scene(folder)

    def during(conditioning, start, end):
        return scene.add("ConditioningSetTimestepRange", conditioning=conditioning, start=start, end=end)[0]

    always = during(scene.positive, 0.0, 1.0)
    first, second = during(scene.positive, 0.0, 0.5), during(scene.text("a blue ball"), 0.5, 1.0)
    changing = scene.add("ConditioningCombine", conditioning_1=first, conditioning_2=second)[0]
    plain, whole, changed = compare(
        server, scene, scene.sample(), scene.sample(positive=always), scene.sample(positive=changing)
    )
    assert difference(whole, plain) < SAME
    assert torch.isfinite(changed).all() and difference(changed, plain) > 1e-3


def test_equal_conditionings_on_masked_areas_are_not_taken_for_one_another(server, folder):
    scene = Scene(folder)
    mask = scene.add("SolidMask", value=1.0, width=WIDTH, height=HEIGHT)[0]
    half = scene.add("SolidMask", value=0.5, width=WIDTH, height=HEIGHT)[0]

    def masked(conditioning, mask):
        return scene.add(
            "ConditioningSetMask", conditioning=conditioning, mask=mask, strength=1.0, set_cond_area="default"
        )[0]

    combined = scene.add(
        "ConditioningCombine", conditioning_1=masked(scene.positive, half), conditioning_2=masked(scene.negative, half)
    )[0]
    scene.count()
    guider = scene.dual_guider(combined, masked(scene.negative, half), masked(scene.negative, mask))
    # Two texts for the prompt, and two negative prompts that differ in their mask.
    assert sum(scene.evaluations(server, scene.custom(guider))) == 4 * STEPS


@pytest.mark.parametrize("prompt", ["a (red:1.4) cube", "((a red cube))", "a [red] {cube}"])
def test_brackets_never_become_weights_in_our_encode(server, folder, prompt):
    scene = Scene(folder, prompt=prompt)
    node = scene.save(conditioning=scene.positive)
    tensors = server.tensors(server.run(scene.graph), node)
    plain = Scene(folder, prompt="a red cube")
    other = plain.save(conditioning=plain.positive)
    length = server.tensors(server.run(plain.graph), other)["cond.0"].shape[1]
    # The golden model's tokenizer takes one token for a byte.
    assert tensors["cond.0"].shape[1] - length == len(prompt) - len("a red cube")


# Decoding, writing


def test_a_tiled_decode_is_the_whole_decode_where_one_tile_holds_it(server, folder):
    scene = Scene(folder)
    latent = scene.sample()
    whole = scene.save(image=scene.add("VAEDecode", samples=latent, vae=scene.vae)[0])
    tiled = scene.save(
        image=scene.add(
            "VAEDecodeTiled", samples=latent, vae=scene.vae, tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8
        )[0]
    )
    result = server.run(scene.graph)
    assert difference(server.tensors(result, whole)["image"], server.tensors(result, tiled)["image"]) < 2e-3


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_text_generate_answers_with_our_encoder(server, graph, colour):
    picture = rendered("white", ("middle", colour, "circle", "large"))
    loaded = graph.add("LoadImage", image=server.save_input(f"asked-{colour}.png", picture))
    clip = graph.add("OmniGen2LoadFolder", folder=BUILT_IN, dtype="auto")[1]
    asked = graph.add(
        "TextGenerate", clip=clip, image=loaded[0], prompt="What color is the circle?", max_length=24, sampling_mode="off"
    )
    shown = graph.add("PreviewAny", source=asked[0])
    answer, = server.run(graph).ui[shown]["text"]
    assert colour in answer.lower()


# Core's own workflows and models


SCENE = ("white", ("left", "red", "circle", "large"), ("right", "blue", "square", "large"))
TEMPLATES = {
    "image_omnigen2_t2i": ("A large red circle on the left and a large blue square on the right on a white background", SCENE),
    "image_omnigen2_image_edit": ("Change the background to yellow", ("yellow", *SCENE[1:])),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_core_s_template_runs_with_only_its_loaders_swapped(server, name):
    """On the built-in model, in its sizes and with its guidance; the picture shows what the prompt says."""
    text, wanted = TEMPLATES[name]
    graph = api_of_template(server, name)
    loader = graph.add("OmniGen2LoadFolder", folder=BUILT_IN, dtype="auto")
    swapped = {node: slot for slot, kind in enumerate(("UNETLoader", "CLIPLoader", "VAELoader"))
               for node, entry in graph.prompt.items() if entry["class_type"] == kind}  # fmt: skip
    # The template makes at least 0.01 megapixel of its picture, 102 pixels a side, and the encoder takes the middle 96.
    settings, source = built_in_drawing(), ImageOps.expand(rendered(*SCENE), 3, COLOURS[SCENE[0]])
    small = {
        "EmptySD3LatentImage": {"width": settings["width"], "height": settings["height"]},
        "DualCFGGuider": {"cfg_conds": settings["text_guidance"], "cfg_cond2_negative": settings["image_guidance"]},
        "ImageScaleToTotalPixels": {"megapixels": 0.01},
        "LoadImage": {"image": server.save_input("template.png", source)},
    }  # fmt: skip
    for entry in graph.prompt.values():
        inputs = entry["inputs"]
        inputs |= {key: loader[swapped[value[0]]] for key, value in inputs.items() if isinstance(value, list) and value[0] in swapped}
        inputs |= {key: value for key, value in small.get(entry["class_type"], {}).items() if not isinstance(inputs.get(key), list)}
    guider = node_of(graph.prompt, "DualCFGGuider")["inputs"]
    for link, said in (("cond1", text), ("negative", "")):
        entry = graph.prompt[guider[link][0]]
        while entry["class_type"] != "CLIPTextEncode":
            entry = graph.prompt[entry["inputs"]["conditioning"][0]]
        entry["inputs"]["text"] = said
    for node in swapped:
        del graph.prompt[node]
    image, = server.images(server.run(graph))
    assert_shows(image, *wanted)


@pytest.mark.parametrize("references, tolerance", [(0, SAME), (1, SAME)])
def test_core_s_own_model_and_ours_agree_where_references_are_not_joint(
    server, folder, native, pictures, references, tolerance
):
    scene = Scene(folder, pictures[:references])
    scene.model = scene.add("OmniGen2LoadDiffusionModel", unet_name=native, dtype="fp32")[0]
    own = scene.sample()
    scene.model = scene.add("TestLoadNativeModel", file=native)[0]
    core = scene.sample()
    own_latent, core_latent = scene.save(latent=own), scene.save(latent=core)
    result = server.run(scene.graph)
    own_latent, core_latent = (server.tensors(result, node)["latent"] for node in (own_latent, core_latent))
    assert difference(own_latent, core_latent) < tolerance * max(1.0, own_latent.abs().max().item())
    assert result.ui[core[0]]["omnigen2_notes"] == []


def test_core_s_own_model_says_that_it_refines_several_references_jointly(server, folder, native, pictures):
    scene = Scene(folder, pictures)
    scene.model = scene.add("OmniGen2LoadDiffusionModel", unet_name=native, dtype="fp32")[0]
    own = scene.sample()
    scene.model = scene.add("TestLoadNativeModel", file=native)[0]
    core = scene.sample()
    nodes = scene.save(latent=own), scene.save(latent=core)
    result = server.run(scene.graph)
    latents = [server.tensors(result, node)["latent"] for node in nodes]
    assert any("jointly" in note for note in result.ui[core[0]]["omnigen2_notes"])
    assert not any("jointly" in note for note in result.ui[own[0]]["omnigen2_notes"])
    assert difference(*latents) > 1e-2


def test_core_s_own_model_reads_a_concatenated_prompt_in_our_sampler(server, folder, native):
    scene = Scene(folder)
    joined = scene.add("ConditioningConcat", conditioning_to=scene.positive, conditioning_from=scene.negative)[0]
    scene.model = scene.add("TestLoadNativeModel", file=native)[0]
    core = scene.sample(positive=joined)
    scene.model = scene.add("OmniGen2LoadDiffusionModel", unet_name=native, dtype="fp32")[0]
    core, own = compare(server, scene, core, scene.sample(positive=joined))
    assert difference(core, own) < SAME * max(1.0, own.abs().max().item())


def test_a_model_that_is_no_omnigen2_is_refused(server, folder):
    scene = Scene(folder)
    scene.model = scene.add("TestLoadOtherModel")[0]
    message = scene.fails(server, scene.sample())
    assert "not an OmniGen2" in message and "OmniGen2 Load Diffusion Model" in message
