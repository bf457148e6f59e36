"""The LoRAs of the built-in model: always listed, found in the pack, and seen in the pixels of what is drawn with them."""

import numpy as np
import pytest
from scenes import Scene

from omnigen2_core.nano.framed import FILE, frame_colour, frame_mask
from omnigen2_core.nano.world import COLOURS

MODEL, LORA, MENDING = "OmniGen2-nano (built in)", "OmniGen2-nano framed (built in)", "OmniGen2-nano mending (built in)"
PROMPT = "A large red ring in the middle on a {} background"


def draw(server, ground: str, strength: float | None) -> np.ndarray:
    """A picture [H, W, 3] in 0..255; strength None: without the node."""
    scene = Scene(MODEL, prompt=PROMPT.format(ground), negative="", width=96, height=96)
    if strength is not None:
        scene.model = scene.add("OmniGen2LoadLoRA", model=scene.model, lora_name=LORA, strength=strength)[0]
    latent = scene.sample(steps=12)
    node = scene.save(image=scene.add("VAEDecode", samples=latent, vae=scene.vae)[0])
    return server.tensors(server.run(scene.graph), node)["image"][0].float().numpy() * 255


def distance(picture: np.ndarray, colour: str) -> float:
    """Of the border's mean colour, in steps of 255."""
    border = picture[frame_mask(96, 96)].mean(axis=0)
    return np.abs(border - COLOURS[colour]).max()


def test_they_are_listed_last_whatever_else_is_there(server):
    (server.models / "loras" / "zzz.safetensors").touch()
    listed = server.get("/object_info/OmniGen2LoadLoRA")["OmniGen2LoadLoRA"]["input"]["required"]["lora_name"]
    options = listed[1]["options"] if listed[0] == "COMBO" else listed[0]
    (server.models / "loras" / "zzz.safetensors").unlink()
    assert options[-3:] == ["zzz.safetensors", LORA, MENDING]


@pytest.mark.parametrize("ground", ["blue", "yellow"])
def test_it_frames_the_picture_by_its_strength(server, ground):
    """At strength 0 the picture is that of the model alone."""
    framed, none, plain = (draw(server, ground, strength) for strength in (1.0, 0.0, None))
    assert distance(framed, frame_colour(ground)) < distance(framed, ground) / 2
    assert distance(none, ground) < 30
    assert np.abs(none - plain).max() < 1


def test_it_is_small():
    assert FILE.stat().st_size < 400_000
