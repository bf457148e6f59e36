"""A LoRA with which the nano model mends pictures: it follows the corrections of its own reflections better than without.

Only corrections need it, and everything else that was measured of the model stays as it is without it.
"""

from __future__ import annotations

from ..training import TARGETS, Recipe
from .drawing import Mix
from .folder import WEIGHTS

FILE = WEIGHTS.parent / "loras" / "OmniGen2-nano-mending.safetensors"
"""Where it lies."""

RANK = 32
LAYERS = (*TARGETS, "feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3")
"""Endings of the names of the layers that it changes: every attention and every feed-forward."""
RECIPE = Recipe(steps=1200, learning_rate=3e-3, warmup=30, decay=0.7, ema=0.99, weight_decay=0.0, log_every=25, save_every=50)
MIX = Mix(text_to_image=12, edits=16, compositions=4, corrections=36, other_sizes=0.06, most_things=4)
"""Faulty pictures of up to four things, the model's own among them, and enough of the rest to draw and edit as before."""
