"""Masked edits by every way of sampling, and noise that is core's for batches too."""

import pytest
import torch
from scenes import HEIGHT, SEED, STEPS, WIDTH, Scene, compare, difference, save_latent, save_picture
from small_models import install_folder

SAME = 1e-4
FIXED = {"shift": "fixed", "shift.value": 2.6}
LEFT = slice(0, WIDTH // 16)
RIGHT = slice(WIDTH // 16, None)


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def pictures(server):
    return [save_picture(server, "masked.png", WIDTH, HEIGHT, seed=40)]


def masked_latent(server, scene: Scene, batch: int) -> tuple[list, torch.Tensor]:
    """Random latents whose right half may change, and the latents themselves."""
    given = torch.randn(batch, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(8))
    latent = scene.add("TestLoadLatent", file=save_latent(server, f"masked_{batch}.safetensors", given))[0]
    black = scene.add("SolidMask", value=0.0, width=WIDTH, height=HEIGHT)[0]
    white = scene.add("SolidMask", value=1.0, width=WIDTH // 2, height=HEIGHT)[0]
    mask = scene.add("MaskComposite", destination=black, source=white, x=WIDTH // 2, y=0, operation="add")[0]
    return scene.add("SetLatentNoiseMask", samples=latent, mask=mask)[0], given


WAYS = {
    "dpmpp_2m": lambda scene, latent: scene.sample(latent=latent, solver="dpmpp_2m"),
    "half the noise": lambda scene, latent: scene.sample(latent=latent, denoise=0.5),
    "our guider": lambda scene, latent: scene.custom(scene.guider(), latent=latent),
    "our guider, res_multistep": lambda scene, latent: scene.custom(scene.guider(), sampler="res_multistep", latent=latent),
}


def test_a_masked_edit_changes_only_what_the_mask_covers(server, folder, pictures):
    scene = Scene(folder, pictures)
    latent, given = masked_latent(server, scene, 2)
    for way, out in zip(WAYS, compare(server, scene, *(sample(scene, latent) for sample in WAYS.values()))):
        assert out.shape == given.shape, way
        assert difference(out[..., LEFT], given[..., LEFT]) < SAME, way
        assert all(difference(a[..., RIGHT], b[..., RIGHT]) > 1e-2 for a, b in zip(out, given)), way


def test_the_guider_masks_as_the_sampler_does(server, folder, pictures):
    scene = Scene(folder, pictures)
    latent, _ = masked_latent(server, scene, 1)
    own, custom = compare(server, scene, scene.sample(latent=latent), scene.custom(scene.guider(), latent=latent))
    assert difference(own, custom) < SAME


def test_noise_for_a_batch_and_for_a_part_of_it_is_core_s(server, folder):
    scene = Scene(folder, batch=3)
    part = scene.add("LatentFromBatch", samples=scene.latent, batch_index=1, length=2)[0]
    own, core, own_part, core_part = compare(
        server, scene, scene.sample(steps=1, **FIXED), scene.ksampler(steps=1),
        scene.sample(steps=1, latent=part, **FIXED), scene.ksampler(steps=1, latent_image=part),
    )  # fmt: skip
    assert own.shape[0] == 3 and difference(own, core) < SAME
    assert difference(own_part, core_part) < SAME
    assert difference(own_part, own[1:]) < SAME
    assert difference(own[:1], own[1:2]) > 1e-2


def test_an_average_of_texts_of_unequal_length_is_sampled(server, folder):
    scene = Scene(folder)

    def average(to, other):
        return scene.add(
            "ConditioningAverage", conditioning_to=to, conditioning_from=other, conditioning_to_strength=0.5
        )[0]

    longer, shorter = scene.text("a red cube on a blue table"), scene.text("a cube")
    plain, longer, shorter = compare(
        server, scene, scene.sample(), scene.sample(positive=average(longer, shorter)),
        scene.sample(positive=average(shorter, longer)),
    )  # fmt: skip
    assert torch.isfinite(longer).all() and torch.isfinite(shorter).all()
    assert min(difference(longer, plain), difference(shorter, plain), difference(longer, shorter)) > 1e-3


def test_sigmas_of_an_empty_latent_of_another_model_are_those_of_its_size(server, folder):
    scene = Scene(folder)
    foreign = scene.add("EmptyLatentImage", width=WIDTH, height=HEIGHT, batch_size=1)[0]
    own = scene.save(sigmas=scene.sigmas())
    scene.latent = foreign
    other = scene.save(sigmas=scene.sigmas())
    result = server.run(scene.graph)
    own, other = (server.tensors(result, node)["sigmas"] for node in (own, other))
    assert len(own) == STEPS + 1 and torch.equal(own, other)
    assert scene.run(server, scene.custom(scene.guider(), seed=SEED)).shape == (1, 16, HEIGHT // 8, WIDTH // 8)
