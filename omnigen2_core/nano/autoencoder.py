"""Training the nano model's image autoencoder on pictures of its world."""

from __future__ import annotations

import random
from typing import Any, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..training import Recipe
from ..vae import AutoencoderKL, VAEConfig
from .world import COLOURS, PICTURE_SIZES, Scene, Thing, draw_scene, render

CONFIG = VAEConfig(
    block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8, scaling_factor=1.0, shift_factor=0.0
)
RECIPE = Recipe(
    steps=5000, learning_rate=1e-3, muon_learning_rate=3e-3, warmup=30, decay=0.7, weight_decay=0.0, ema=0.99, save_every=150
)
DECODER_RECIPE = Recipe(
    steps=1600, learning_rate=1e-3, muon_learning_rate=2e-3, warmup=30, decay=0.9, weight_decay=0.0, ema=0.99, save_every=200
)
"""Goes on with the decoder alone, while the diffusion transformer already learns the encoder's latents."""
KL_WEIGHT = 5e-5
BATCH = 16
CROP = 64
"""Most batches are square cut-outs of this side: cheaper, and as instructive."""
_FAINT = {
    ground: sorted((c for c in COLOURS if c != ground), key=lambda c: max(abs(a - b) for a, b in zip(COLOURS[c], value)))[:3]
    for ground, value in COLOURS.items()
}


def to_tensor(pictures: Iterable[np.ndarray]) -> Tensor:
    """Pictures of one size, [height, width, 3] uint8, as [B, 3, H, W] in -1..1."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1


class ContiguousNorm(torch.nn.GroupNorm):
    """GroupNorm between convolutions that keep channels last, for which its backward pass is several times slower."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class TrainingOperations:
    """Layers for fast training on a CPU."""

    Conv2d = torch.nn.Conv2d
    Linear = torch.nn.Linear
    GroupNorm = ContiguousNorm


def _shaken(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """Sometimes moves a picture off the grid and recolours it, so that the autoencoder serves more than the world."""
    if rng.random() < 0.15:
        picture = np.roll(picture, (rng.randrange(picture.shape[0]), rng.randrange(picture.shape[1])), axis=(0, 1))
    if rng.random() < 0.05:
        picture = picture[..., rng.sample(range(3), 3)]
        low, high = sorted((rng.random(), rng.random()))
        picture = (low * 255 + picture.astype(np.float32) * (high - low)).astype(np.uint8)
    return picture


def _harder(thing: Thing, ground: str, rng: random.Random) -> Thing:
    colour = rng.choice(_FAINT[ground]) if rng.random() < 0.5 else thing.colour
    return thing.but(size="small", shape=rng.choice(("cross", "diamond")), colour=colour)


class Pictures:
    """Batches of pictures of one size each, most of them cut-outs.

    `hard`: turns so large a share of things into small crosses and diamonds, the pair that is told apart last, half of
    them in one of the colours that stand out least from the ground.
    """

    def __init__(self, hard: float = 0.0):
        self.hard = hard

    def _scene(self, rng: random.Random) -> Scene:
        scene = draw_scene(rng, rng.randint(1, 9))
        return scene.with_things([_harder(t, scene.ground, rng) if rng.random() < self.hard else t for t in scene.things])

    def batch(self, step: int, rng: random.Random) -> list[Tensor]:
        whole = rng.random() < 0.1
        width, height = rng.choice(PICTURE_SIZES)
        pictures = []
        for _ in range(BATCH // 2 if whole else BATCH):
            picture = _shaken(render(self._scene(rng), width, height), rng)
            if not whole:
                left, top = (rng.randrange(0, side - CROP + 1, 8) for side in (width, height))
                picture = picture[top : top + CROP, left : left + CROP]
            pictures.append(picture)
        return [to_tensor(pictures)]


def reconstruction_loss(vae: AutoencoderKL):
    """Absolute error of the reconstruction, errors of edges, and the posterior's divergence from a standard normal."""

    def loss(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        images = images.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(images)
        mean, logvar = posterior.mean.float(), posterior.logvar.float().clamp(-12, 4)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
        error = vae.decode(latents).float() - images
        absolute = error.abs().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        figures = {"absolute": absolute.item(), "divergence": divergence.item(), "noise": torch.exp(0.5 * logvar).mean().item()}
        return absolute + 0.25 * edges + 2 * error.square().mean() + KL_WEIGHT * divergence, figures

    return loss


def faintness(images: Tensor) -> Tensor:
    """Weights [B, 1, H, W] of errors in images [B, 3, H, W]: what stands out little from its surroundings counts as much as
    what stands out."""
    lightest, darkest = (F.max_pool2d(sign * images, 17, stride=1, padding=8) for sign in (1, -1))
    contrast = (lightest + darkest).amax(dim=1, keepdim=True)
    return torch.where(contrast > 0, 2 / contrast.clamp(min=0.1), 1.0)


def decoding_loss(vae: AutoencoderKL):
    """The reconstruction errors alone, weighted by `faintness`, for training the decoder on somewhat noisy latents."""

    def loss(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            mean = vae.encode(images).mean.float()
        strength = 0.15 * torch.rand(len(mean), 1, 1, 1, generator=generator) * mean.std()
        error = vae.decode(mean + strength * torch.randn(mean.shape, generator=generator)).float() - images
        absolute = error.abs().mean().item()
        error = error * faintness(images)
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + 0.25 * edges + 2 * error.square().mean(), {"absolute": absolute}

    return loss


def hidden_matrices(vae: AutoencoderKL) -> list[str]:
    """Names of the kernels and matrices between the ends."""
    return [n for n, p in vae.named_parameters() if p.ndim >= 2 and "conv_in" not in n and "conv_out" not in n]


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, count: int = 256) -> dict[str, Any]:
    """Scale and shift that give latents of the world's pictures mean 0 and standard deviation 1 overall."""
    rng = random.Random(1)
    pictures = to_tensor(render(draw_scene(rng, rng.randint(1, 4))) for _ in range(count))
    latents = vae.encode(pictures).mean.float()
    return {"scaling_factor": round(1 / latents.std().item(), 6), "shift_factor": round(latents.mean().item(), 6)}
