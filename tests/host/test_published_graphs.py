"""Every graph for the published weights runs to its picture: on the built-in model, judged by a program that sees only pixels.

The graphs are the shipped API files; loaders, sizes and steps, words and pictures are those of the built-in model.
"""

from __future__ import annotations

import numpy as np
import pytest
from built_in_choices import ASKED, RUNS
from built_in_graphs import FOLDER, api, assert_shows, node_of, on_built_in_model, rendered, with_mask
from PIL import Image
from template_parts import BUILT_IN, BUILT_IN_LORA

from omnigen2_core.nano.framed import frame_colour, frame_mask
from omnigen2_core.nano.world import COLOURS

TEMPLATES = {file.stem: "api" for file in (FOLDER / "api").glob("*.json") if BUILT_IN not in file.read_text(encoding="utf-8")}
CONVERTED = {file.stem: "converted/api" for file in (FOLDER / "converted" / "api").glob("*.json")}
ASKS, MASKS, LORA = "OmniGen2-ask-about-a-picture", "OmniGen2-masked-edit", "OmniGen2-LoRA"


def picture(server, name: str, **more) -> Image.Image:
    """The picture that a graph saves, or shows, with what RUNS says of it."""
    scenes, text, _ = RUNS[name]
    prompt = on_built_in_model(server, api(name, (TEMPLATES | CONVERTED)[name]), [rendered(*scene) for scene in scenes], text, **more)
    last = next(node for node, entry in prompt.items() if entry["class_type"] in ("SaveImage", "PreviewImage"))
    image, = server.images(server.run(prompt), last)
    return image


def test_every_published_graph_is_run_here():
    assert {*RUNS, ASKS} == {*TEMPLATES, *CONVERTED}


@pytest.mark.parametrize("name", sorted({*RUNS} - {MASKS, LORA}))
def test_its_picture_shows_what_the_words_say(server, name):
    assert_shows(picture(server, name), *RUNS[name][2])


def test_the_lora_frames_the_picture(server):
    """Where the frame lies, the picture is nearer to the frame's colour than to the ground's only with the LoRA. It was
    trained on pictures without references, so what they bring together is judged without it.
    """
    ground = RUNS[LORA][2][0]
    for lora, near, far in ((None, ground, frame_colour(ground)), (BUILT_IN_LORA, frame_colour(ground), ground)):
        drawn = np.asarray(picture(server, LORA, lora=lora))
        frame = frame_mask(drawn.shape[1], drawn.shape[0])
        to_near, to_far = (np.abs(drawn[frame] - np.array(COLOURS[colour])).mean() for colour in (near, far))
        assert to_near < to_far / 2
        if lora is None:
            assert_shows(drawn, *RUNS[LORA][2])


@pytest.mark.parametrize("name", [MASKS, "Try-it-masked-edit"])
def test_the_masked_edit_samples_only_under_the_mask(server, name):
    """Before the original is pasted back, the sampler has left the latents of the other half alone, and
    the picture shows the edit.
    """
    scenes, text, wanted = RUNS[MASKS]
    prompt = api(name)
    if name == MASKS:
        prompt = on_built_in_model(server, prompt, [with_mask(rendered(*scenes[0]))], text)
    masked = next(node for node, entry in prompt.items() if entry["class_type"] == "SetLatentNoiseMask")
    sampled = next(node for node, entry in prompt.items() if entry["inputs"].get("latent") == [masked, 0])
    pasted = node_of(prompt, "ImageCompositeMasked")["inputs"]["source"]
    latents = {"given": prompt[masked]["inputs"]["samples"], "sampled": [sampled, 0]}
    prompt |= {key: {"class_type": "TestSaveTensors", "inputs": {"name": f"{name}-{key}", "latent": link}} for key, link in latents.items()}
    prompt["before"] = {"class_type": "PreviewImage", "inputs": {"images": pasted}}
    result = server.run(prompt)
    given, sampled = (server.tensors(result, key)["latent"].float() for key in latents)
    half = given.shape[-1] // 2 - 1
    assert (sampled - given)[..., :half].abs().max() < 1e-4
    assert (sampled - given)[..., -half:].abs().max() > 0.5
    before, = server.images(result, "before")
    assert_shows(before, *wanted)
    saved = next(node for node, entry in prompt.items() if entry["class_type"] == "SaveImage")
    after, = server.images(result, saved)
    assert_shows(after, *wanted)


def test_the_question_is_answered(server):
    scene, question, word = ASKED
    prompt = on_built_in_model(server, api(ASKS), [rendered(*scene)], question)
    node = next(node for node, entry in prompt.items() if entry["class_type"] == "OmniGen2Ask")
    assert word in server.run(prompt).ui[node]["text"][0]
