"""OmniGen2 Sampler, Guider and Sigmas in a real server."""

import math

import pytest
import torch
from harness import Graph
from scenes import HEIGHT, SEED, STEPS, WIDTH, Scene, difference, save_latent, save_picture
from small_models import install_folder

SAME = 1e-4
OURS = ("OmniGen2Sample", "OmniGen2Guider", "OmniGen2Sigmas", "OmniGen2LoadLoRA")


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def pictures(server):
    return [save_picture(server, f"sampling_{i}.png", 64, 48 + 16 * i, seed=i) for i in range(2)]


# What the nodes say about themselves


@pytest.mark.parametrize("name", OURS)
def test_every_input_and_output_has_a_tooltip(server, name):
    node = server.node(name)
    inputs = {**node["input"]["required"], **node["input"].get("optional", {})}
    assert [key for key, value in inputs.items() if not value[1].get("tooltip")] == []
    assert len(node["output_tooltips"]) == len(node["output"]) and all(node["output_tooltips"])


def test_the_widgets_keep_their_order_because_saved_workflows_count_on_it(server):
    required = server.node("OmniGen2Sample")["input_order"]["required"]
    assert required == [
        "model", "positive", "latent", "seed", "steps", "solver", "text_guidance", "image_guidance", "guidance_start",
        "guidance_end", "shift", "denoise",
    ]  # fmt: skip


def test_the_defaults_are_the_reference_s(server):
    inputs = server.node("OmniGen2Sample")["input"]["required"]
    defaults = {name: inputs[name][1]["default"] for name in ("steps", "solver", "text_guidance", "image_guidance")}
    assert defaults == {"steps": 50, "solver": "euler", "text_guidance": 5.0, "image_guidance": 2.0}


# Guidance


@pytest.mark.parametrize(
    "references, settings, per_step",
    [
        (0, {}, [2, 2, 2, 2]),
        (0, {"text_guidance": 1.0}, [1, 1, 1, 1]),
        (0, {"text_guidance": 1.0, "negative": None, "negative_ref": None}, [1, 1, 1, 1]),
        (1, {}, [3, 3, 3, 3]),
        (1, {"image_guidance": 1.0}, [2, 2, 2, 2]),
        (1, {"text_guidance": 1.0}, [1, 1, 1, 1]),
        (1, {"guidance_start": 0.25, "guidance_end": 0.5}, [1, 3, 3, 1]),
        (0, {"guidance_end": 0.0}, [2, 1, 1, 1]),
    ],
)
def test_only_the_evaluations_that_a_step_needs_are_run(server, folder, pictures, references, settings, per_step):
    scene = Scene(folder, pictures[:references])
    scene.count()
    assert sum(scene.evaluations(server, scene.sample(**settings))) == sum(per_step)


@pytest.mark.parametrize("references", [0, 1, 2])
def test_sampler_and_guider_with_core_s_euler_are_the_same(server, folder, pictures, references):
    scene = Scene(folder, pictures[:references])
    own, custom = scene.save(latent=scene.sample()), scene.save(latent=scene.custom(scene.guider()))
    result = server.run(scene.graph)
    assert difference(server.tensors(result, own)["latent"], server.tensors(result, custom)["latent"]) < SAME


def test_the_third_conditioning_may_be_left_open(server, folder, pictures):
    scene = Scene(folder, pictures[:1])
    nodes = [
        scene.save(latent=scene.sample(**left_open)) for left_open in ({}, {"negative_ref": None}, {"negative": None})
    ]
    result = server.run(scene.graph)
    full, without_ref, without_negative = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(full, without_ref) < SAME
    assert difference(full, without_negative) < SAME


def test_text_guidance_without_a_negative_prompt_is_refused_in_a_sentence(server, folder):
    scene = Scene(folder)
    message = scene.fails(server, scene.sample(negative=None, negative_ref=None))
    assert "needs a negative prompt" in message and "set text_guidance to 1" in message


def test_a_guidance_range_that_is_none_is_refused(server, folder):
    scene = Scene(folder)
    assert "guidance range is 0.6 to 0.4" in scene.fails(server, scene.sample(guidance_start=0.6, guidance_end=0.4))


def test_a_sixth_reference_is_refused(server, folder, pictures):
    scene = Scene(folder)
    positive = scene.positive
    encoded = scene.add("VAEEncode", pixels=scene.add("LoadImage", image=pictures[0])[0], vae=scene.vae)[0]
    for _ in range(6):
        positive = scene.add("ReferenceLatent", conditioning=positive, latent=encoded)[0]
    message = scene.fails(server, scene.sample(positive=positive))
    assert "6 references" in message and "at most 5" in message


@pytest.mark.parametrize(
    "swapped, said",
    [
        ({"negative": "negative_ref"}, "negative carries references"),
        ({"negative_ref": "negative"}, "negative_ref carries no references"),
        ({}, None),
    ],
)
def test_conditionings_in_each_other_s_place_are_noted(server, folder, pictures, swapped, said):
    scene = Scene(folder, pictures[:1])
    wrong = {socket: getattr(scene, name) for socket, name in swapped.items()}
    sampled, guider = scene.sample(steps=1, **wrong), scene.guider(**wrong)
    scene.save(latent=sampled)
    scene.save(latent=scene.custom(guider, sigmas=scene.sigmas(steps=1)))
    result = server.run(scene.graph)
    for node in (sampled[0], guider[0]):
        notes = result.ui[node]["omnigen2_notes"]
        assert any(said in note for note in notes) if said else notes == []


def test_a_batch_of_latents_as_one_reference_is_noted(server, folder, pictures):
    scene = Scene(folder)
    picture = scene.add("RepeatImageBatch", image=scene.add("LoadImage", image=pictures[0])[0], amount=3)[0]
    encoded = scene.add("VAEEncode", pixels=picture, vae=scene.vae)[0]
    sampled = scene.sample(steps=1, positive=scene.add("ReferenceLatent", conditioning=scene.positive, latent=encoded)[0])
    scene.save(latent=sampled)
    note, = (note for note in server.run(scene.graph).ui[sampled[0]]["omnigen2_notes"] if "batch of 3" in note)
    assert "OmniGen2 Encode" in note


# Steps


def shifted(steps: int, factor: float) -> list[float]:
    times = [i / steps for i in range(steps)]
    return [1 - t / (factor - factor * t + t) for t in times] + [0.0]


@pytest.mark.parametrize(
    "settings, factor",
    [
        ({"shift": "auto"}, math.sqrt(WIDTH / 8 * HEIGHT / 8) / 40),
        ({"shift": "fixed", "shift.value": 2.6}, 2.6),
        ({"shift": "none"}, 1.0),
    ],
)
def test_the_steps_spread_by_the_picture_s_size_or_by_a_number(server, folder, settings, factor):
    scene = Scene(folder)
    node = scene.save(sigmas=scene.sigmas(steps=7, **settings))
    sigmas = server.tensors(server.run(scene.graph), node)["sigmas"]
    assert difference(sigmas, torch.tensor(shifted(7, factor))) < 1e-6


def test_less_denoising_takes_the_last_steps_of_a_longer_run(server, folder):
    scene = Scene(folder)
    nodes = [scene.save(sigmas=scene.sigmas(steps=4, denoise=0.5)), scene.save(sigmas=scene.sigmas(steps=8))]
    result = server.run(scene.graph)
    part, whole = (server.tensors(result, node)["sigmas"] for node in nodes)
    assert torch.equal(part, whole[-5:])


def test_denoise_0_returns_the_latent_unchanged(server, folder):
    scene = Scene(folder)
    given = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8)
    latent = scene.add("TestLoadLatent", file=save_latent(server, "denoise.safetensors", given))[0]
    assert difference(scene.run(server, scene.sample(latent=latent, denoise=0.0)), given) == 0


def test_an_unknown_shift_is_refused(server, folder):
    scene = Scene(folder)
    assert "auto, fixed or none" in scene.fails(server, scene.sample(shift="sideways"))


def test_both_solvers_arrive_and_differ(server, folder):
    scene = Scene(folder)
    nodes = [scene.save(latent=scene.sample(solver=solver)) for solver in ("euler", "dpmpp_2m")]
    result = server.run(scene.graph)
    euler, dpm = (server.tensors(result, node)["latent"] for node in nodes)
    assert torch.isfinite(dpm).all() and difference(euler, dpm) > 1e-3


# Latents


def test_a_mask_keeps_what_it_does_not_cover(server, folder):
    scene = Scene(folder)
    given = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8)
    latent = scene.add("TestLoadLatent", file=save_latent(server, "masked.safetensors", given))[0]
    right_half = scene.add("SolidMask", value=0.0, width=WIDTH, height=HEIGHT)[0]
    white = scene.add("SolidMask", value=1.0, width=WIDTH // 2, height=HEIGHT)[0]
    mask = scene.add("MaskComposite", destination=right_half, source=white, x=WIDTH // 2, y=0, operation="add")[0]
    masked = scene.add("SetLatentNoiseMask", samples=latent, mask=mask)[0]
    out = scene.run(server, scene.sample(latent=masked))
    kept, changed = out[..., : WIDTH // 16], out[..., WIDTH // 16 :]
    assert difference(kept, given[..., : WIDTH // 16]) < 1e-4
    assert difference(changed, given[..., WIDTH // 16 :]) > 1e-2


def test_a_latent_of_another_model_is_refused(server, folder):
    scene = Scene(folder)
    latent = scene.add("TestLoadLatent", file=save_latent(server, "sd.safetensors", torch.randn(1, 4, 6, 8)))[0]
    message = scene.fails(server, scene.sample(latent=latent))
    assert "[1, 4, 6, 8]" in message and "16" in message


def test_an_odd_size_is_sampled_and_noted(server, folder):
    scene = Scene(folder)
    latent = scene.add("TestLoadLatent", file=save_latent(server, "odd.safetensors", torch.zeros(1, 16, 5, 7)))[0]
    sampled = scene.sample(latent=latent)
    node = scene.save(latent=sampled)
    result = server.run(scene.graph)
    assert server.tensors(result, node)["latent"].shape == (1, 16, 5, 7)
    assert any("56x40" in note for note in result.ui[sampled[0]]["omnigen2_notes"])


def test_an_even_size_has_no_note(server, folder):
    scene = Scene(folder)
    sampled = scene.sample(seed=1234)
    scene.save(latent=sampled)
    assert server.run(scene.graph).ui[sampled[0]]["omnigen2_notes"] == []


# The run


def test_noise_is_that_of_core_s_ksampler(server, folder):
    scene = Scene(folder)
    fixed = {"shift": "fixed", "shift.value": 2.6}
    own = scene.save(latent=scene.sample(steps=1, **fixed))
    core = scene.save(latent=scene.ksampler(steps=1))
    result = server.run(scene.graph)
    assert difference(server.tensors(result, own)["latent"], server.tensors(result, core)["latent"]) < SAME


def test_changing_only_the_seed_runs_only_sampling_and_what_follows(server, folder, pictures):
    def run(seed):
        scene = Scene(folder, pictures[:1], prompt="seeds")
        sampled = scene.sample(seed=seed)
        node = scene.save(latent=sampled)
        return server.run(scene.graph), sampled[0], node

    run(SEED)
    result, sampler, saved = run(SEED + 1)
    assert sorted(result.executed) == sorted([sampler, saved])


def test_every_step_is_reported(server, folder):
    scene = Scene(folder, prompt="progress")
    sampled = scene.sample()
    scene.save(latent=sampled)
    progress = server.run(scene.graph).progress(sampled[0])
    assert progress[-1] == (STEPS, STEPS)


def test_previews_are_sent_while_sampling(server, folder):
    scene = Scene(folder, prompt="previews")
    scene.save(latent=scene.sample(steps=6))
    assert server.run(scene.graph, preview=True).previews


@pytest.mark.parametrize("way", ["our sampler", "our guider"])
def test_cancelling_stops_within_a_step_and_the_next_run_is_unharmed(server, folder, way):
    def run_of(scene, **settings):
        if way == "our sampler":
            return scene.sample(**settings)
        return scene.custom(scene.guider(), sigmas=scene.sigmas(**settings))

    undisturbed = Scene(folder, prompt="cancelled")
    sampled = run_of(undisturbed)
    expected = undisturbed.run(server, sampled)

    cancelled = Scene(folder, prompt="cancelled")
    cancelled.model = cancelled.add("TestSlowModel", model=cancelled.model, seconds=0.5)[0]
    sampled = run_of(cancelled, steps=20)
    cancelled.save(latent=sampled)
    reported = []

    def interrupt(kind, data, result):
        if kind == "progress" and data["node"] == sampled[0]:
            reported.append(data["value"])
            if len(reported) == 1:
                server.interrupt()

    result = server.run(cancelled.graph, on_event=interrupt, check=False)
    assert result.status == "interrupted"
    assert reported[-1] <= reported[0] + 4

    after = Scene(folder, prompt="cancelled")
    nodes = [after.save(latent=latent) for latent in (run_of(after), after.sample(text_guidance=3.0 + 1e-3))]
    result = server.run(after.graph)
    again, nearly = (server.tensors(result, node)["latent"] for node in nodes)
    assert difference(again, expected) == 0
    assert difference(nearly, expected) < 0.1


def test_a_free_request_releases_every_model_and_the_next_run_loads_them_again(server, folder, pictures):
    scene = Scene(folder, pictures[:1])
    latent = scene.sample()
    image = scene.add("VAEDecode", samples=latent, vae=scene.vae)[0]
    saved = scene.save(latent=latent, image=image)
    first = server.tensors(server.run(scene.graph), saved)["image"]

    counting = Graph()
    alive = counting.add("TestCountAlive", names="HostTransformer OmniGen2Encoder _HostAutoencoder")
    assert all(server.records(server.run(counting), alive).values())
    server.free()
    assert not any(server.records(server.run(counting), alive).values())
    assert difference(server.tensors(server.run(scene.graph), saved)["image"], first) == 0


def test_the_shift_follows_the_folder_s_own_base(server, golden):
    name = install_folder(server.models, golden, "base 20")
    config = server.models / "diffusers" / name / "scheduler" / "scheduler_config.json"
    config.write_text('{"time_shift_base": 20.0}', encoding="utf-8")
    scene = Scene(name)
    node = scene.save(sigmas=scene.sigmas(steps=5))
    sigmas = server.tensors(server.run(scene.graph), node)["sigmas"]
    assert difference(sigmas, torch.tensor(shifted(5, math.sqrt(WIDTH / 8 * HEIGHT / 8) / 20))) < 1e-6


