"""Nodes that reach into the guidance or the model's evaluations, under our guider and our run object."""

import pytest
import torch
from native_model import install_native
from scenes import STEPS, TEXT_GUIDANCE, Scene, compare, difference, save_picture
from small_models import install_folder

SAME = 1e-4


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def pictures(server):
    return [save_picture(server, "patched.png", 64, 48, seed=30)]


@pytest.mark.parametrize("references", [0, 1])
def test_a_node_that_scales_the_guidance_scales_ours_by_text(server, folder, pictures, references):
    scene = Scene(folder, pictures[:references])
    plain, twice = scene.sample(), scene.sample(text_guidance=2 * TEXT_GUIDANCE)
    # The same factor for all frequencies.
    scene.model = scene.add("FreSca", model=scene.model, scale_low=2.0, scale_high=2.0, freq_cutoff=20)[0]
    scaled, twice, plain = compare(server, scene, scene.sample(), twice, plain)
    assert difference(scaled, twice) < 1e-3 * max(1.0, twice.abs().max().item())
    assert difference(scaled, plain) > 1e-2


@pytest.mark.parametrize("references", [0, 1])
def test_a_node_that_knows_of_two_predictions_only_sees_those_of_the_text_guidance(server, folder, pictures, references):
    scene = Scene(folder, pictures[:references])
    # Half of the steps have no guidance, and so nothing for such a node to do.
    halves = {"guidance_end": 0.25}
    plain, twice = scene.sample(**halves), scene.sample(text_guidance=2 * TEXT_GUIDANCE, **halves)
    scene.model = scene.add("TestDoubleGuidance", model=scene.model)[0]
    doubled, twice, plain = compare(server, scene, scene.sample(**halves), twice, plain)
    assert difference(doubled, twice) < 1e-3 * max(1.0, twice.abs().max().item())
    assert difference(doubled, plain) > 1e-2


@pytest.mark.parametrize("references", [0, 1])
def test_a_formula_of_another_node_takes_the_place_of_text_guidance(server, folder, pictures, references):
    scene = Scene(folder, pictures[:references])
    plain, model = scene.sample(), scene.model
    latents = []
    for multiplier in (0.0, 1.0):
        scene.model = scene.add("RescaleCFG", model=model, multiplier=multiplier)[0]
        latents.append(scene.sample())
    off, on, plain = compare(server, scene, *latents, plain)
    assert difference(off, plain) < 1e-3 * max(1.0, plain.abs().max().item())
    assert difference(on, plain) > 1e-2


@pytest.mark.parametrize("references", [0, 1])
def test_a_node_that_evaluates_for_itself_does_so_for_the_pair_of_the_text_guidance(server, folder, pictures, references):
    scene = Scene(folder, pictures[:references])
    plain = scene.sample()
    scene.model = scene.add(
        "SkipLayerGuidanceDiTSimple", model=scene.model, double_layers="", single_layers="1", start_percent=0.0,
        end_percent=1.0,
    )[0]  # fmt: skip
    scene.count()
    skipped = scene.sample()
    assert sum(scene.evaluations(server, skipped)) == (2 + references) * STEPS
    skipped, plain = compare(server, scene, skipped, plain)
    assert torch.isfinite(skipped).all() and difference(skipped, plain) > 1e-2


@pytest.mark.parametrize("node", ["APG", "TCFG"])
def test_such_nodes_leave_steps_without_guidance_alone(server, folder, node):
    scene = Scene(folder)
    plain = scene.sample(text_guidance=1.0)
    settings = {"eta": 0.5, "norm_threshold": 1.0, "momentum": 0.0} if node == "APG" else {}
    scene.model = scene.add(node, model=scene.model, **settings)[0]
    patched, plain = compare(server, scene, scene.sample(text_guidance=1.0), plain)
    assert difference(patched, plain) == 0


def test_text_is_not_remembered_while_another_node_s_attention_may_change(server, folder, golden):
    native = install_native(server.models, golden)
    scene = Scene(folder)
    latents = []
    for loader, inputs in (
        ("OmniGen2LoadDiffusionModel", {"unet_name": native, "dtype": "fp32"}), ("TestLoadNativeModel", {"file": native})
    ):  # fmt: skip
        scene.model = scene.add("TestFadeAttention", model=scene.add(loader, **inputs)[0])[0]
        latents.append(scene.sample())
    own, core = compare(server, scene, *latents)
    assert difference(own, core) < SAME * max(1.0, core.abs().max().item())


def test_areas_cut_from_one_conditioning_are_branches_of_their_own(server, folder):
    # Core's smallest area is 64x64.
    scene = Scene(folder, width=128, height=64)
    halves = [
        scene.add("ConditioningSetArea", conditioning=scene.positive, width=64, height=64, x=x, y=0, strength=1.0)[0]
        for x in (0, 64)
    ]
    both = scene.add("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1])[0]
    recorded = scene.add("TestRecordCache", model=scene.model)
    scene.model, scene.record = recorded[0], recorded[1]
    evaluations = [tuple(entry) for entry in scene.evaluations(server, scene.sample(positive=both), "evaluations")]
    # Each branch goes through all steps, once.
    branches = {branch for branch, _ in evaluations}
    assert len(branches) >= 3
    assert sorted(evaluations) == sorted((branch, step) for branch in branches for step in range(STEPS))
