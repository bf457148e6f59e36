"""The LoRA that mends: with it more pictures are right after a correction, and drawing is as it was."""

import random

import numpy as np
import pytest
from PIL import Image

from omnigen2_core.nano import drawn, mending
from omnigen2_core.nano import wording as w
from omnigen2_core.nano.faults import cells_of, corrections, draw_spoiled, find_faults, render_spoiled
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.judge import look
from omnigen2_core.nano.world import DEFAULT_SIZE, draw_scene
from omnigen2_core.pipeline import OmniGen2Pipeline

STEPS = 3


@pytest.fixture(scope="module")
def pipelines():
    """The built-in model without and with the LoRA."""
    plain, mends = (OmniGen2Pipeline.from_folder(WEIGHTS, device="cpu") for _ in range(2))
    mends.load_lora(mending.FILE)
    return plain, mends


def right(pipeline, prompts, scenes, references=None) -> int:
    """How many pictures are exact, drawn as corrections are."""
    settings = {"seeds": list(range(len(prompts))), "size": DEFAULT_SIZE, "steps": STEPS, "guidance": drawn.MENDING}
    pictures = pipeline.generate(prompts, references=references, **settings)
    return sum(look(np.asarray(picture)).scene == scene for picture, scene in zip(pictures, scenes, strict=True))


def test_more_faulty_pictures_are_right_after_a_correction(pipelines):
    rng, scenes, words, pictures = random.Random("mending"), [], [], []
    while len(scenes) < 32:
        scene = draw_scene(rng, 4)
        faulty = draw_spoiled(rng, scene)
        pixels = render_spoiled(faulty, *DEFAULT_SIZE)
        if faults := find_faults(scene, faulty.scene.ground, cells_of(faulty, pixels)):
            scenes.append(scene)
            words.append(corrections(rng, faults, plain=True))
            pictures.append([Image.fromarray(pixels)])
    without, with_it = (right(pipeline, words, scenes, pictures) for pipeline in pipelines)
    assert with_it >= without + 4, (without, with_it)


def test_drawing_is_no_worse(pipelines):
    rng = random.Random("drawing")
    scenes = [draw_scene(rng, 1 + i % 3) for i in range(24)]
    prompts = [w.describe(rng, scene) for scene in scenes]
    without, with_it = (right(pipeline, prompts, scenes) for pipeline in pipelines)
    assert with_it >= without - 2, (without, with_it)


def test_it_is_small():
    assert mending.FILE.stat().st_size < 2_100_000
