"""A LoRA for the nano model: it draws what it is told as before, and puts a frame around every picture.

It shows on the built-in model what a LoRA is for, and its training is what one for the published weights would be.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..pipeline import OmniGen2Pipeline
from ..prompts import DEFAULT_NEGATIVE_PROMPT, generation_prompt
from ..training import Recipe, Trainer, add_lora, save_lora
from ..transformer import OmniGen2Transformer
from .drawing import Examples, Latents, Mix, TrainingOperations, drawing_loss
from .folder import WEIGHTS
from .world import COLOURS, Scene, render

FILE = WEIGHTS.parent / "loras" / "OmniGen2-nano-framed.safetensors"
"""Where it lies."""

RANK = 8
RECIPE = Recipe(steps=700, learning_rate=4e-3, warmup=20, decay=0.6, ema=0.98, weight_decay=0.0, log_every=25, save_every=50)
MIX = Mix(text_to_image=16, edits=0, compositions=0)
FRAME = 1 / 16
"""Width of a frame as a share of the picture's shorter side: 6 of 96 pixels."""


def frame_colour(ground: str) -> str:
    """White on dark grounds, black on light ones."""
    red, green, blue = COLOURS[ground]
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 128 else "black"


def frame_mask(width: int, height: int) -> np.ndarray:
    """Pixels of the frame, [height, width] bool."""
    edge = round(min(width, height) * FRAME)
    mask = np.ones((height, width), bool)
    mask[edge : height - edge, edge : width - edge] = False
    return mask


def render_framed(scene: Scene, width: int, height: int) -> np.ndarray:
    """The scene's picture in its frame, [height, width, 3] uint8."""
    picture = render(scene, width, height)
    picture[frame_mask(width, height)] = COLOURS[frame_colour(scene.ground)]
    return picture


class FramedExamples(Examples):
    """Text to image only. A style needs few scenes; the words for them are as varied as ever."""

    ROWS = {"text_to_image": 4000, "edit": 0, "composition": 0}
    SCENES = {1: 400, 2: 400, 3: 400}


def train_framed(model: Path, runs: Path, recipe: Recipe, file: Path = FILE) -> Trainer:
    """Trains the LoRA for the model folder `model`, in the run folder `runs`/lora, and writes it to `file`."""
    from tokenizers import Tokenizer

    pipeline = OmniGen2Pipeline.from_folder(model)
    transformer = OmniGen2Transformer(pipeline.transformer.config, operations=TrainingOperations)
    transformer.load_state_dict(pipeline.transformer.state_dict())
    parameters = add_lora(transformer, RANK, seed=recipe.seed)
    tokenizer = Tokenizer.from_file(str(model / "processor" / "tokenizer.json"))
    empty = [tokenizer.encode(generation_prompt(text), add_special_tokens=False).ids for text in ("", DEFAULT_NEGATIVE_PROMPT)]
    loss = drawing_loss(transformer, pipeline.encoder, Latents(pipeline.vae, render_framed), empty, weigh=None)
    trainer = Trainer(parameters, FramedExamples(tokenizer, MIX), loss, recipe, runs / "lora")
    trainer.run()
    with trainer.averaged():
        save_lora(parameters, file)
    return trainer
