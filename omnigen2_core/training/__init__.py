"""Training of any of the model's parts: a dataset, a recipe, and which parameters move. Knows nothing of what is learnt."""

from .checkpoint import load_checkpoint, save_checkpoint
from .device import fast_dtype
from .ema import ExponentialAverage
from .flow import draw_times, flow_loss, interpolate
from .loop import Trainer
from .lora import TARGETS, add_lora, save_lora
from .optimizers import Muon, build_optimizers
from .parallel import Workers
from .recipe import Recipe

__all__ = [
    "ExponentialAverage",
    "Muon",
    "Recipe",
    "TARGETS",
    "Trainer",
    "Workers",
    "add_lora",
    "build_optimizers",
    "draw_times",
    "fast_dtype",
    "flow_loss",
    "interpolate",
    "load_checkpoint",
    "save_checkpoint",
    "save_lora",
]
