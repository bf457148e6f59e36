"""Training the nano model's diffusion transformer: text to image, edits and compositions in every step."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..mllm import Qwen2_5_VL, encode_text
from ..prompts import generation_prompt
from ..training import Recipe, draw_times, fast_dtype, flow_loss, interpolate
from ..transformer import OmniGen2Config, OmniGen2Transformer
from ..vae import AutoencoderKL
from . import autoencoder
from . import wording as w
from .autoencoder import to_tensor
from .drawn import Drawn
from .edits import draw_composition, draw_edit
from .encoder import WIDTH, vaguer
from .faults import Spoiled, cells_of, corrections, draw_spoiled, find_faults, render_spoiled, touched
from .world import PICTURE_SIZES, Scene, Thing, cell_box, coverage, draw_scene, render

CONFIG = OmniGen2Config(
    hidden_size=192,
    num_layers=6,
    num_refiner_layers=1,
    num_attention_heads=6,
    num_kv_heads=3,
    multiple_of=64,
    ffn_dim_multiplier=2 / 3,
    axes_dim_rope=(8, 12, 12),
    text_feat_dim=WIDTH,
)
RECIPE = Recipe(
    steps=8000, learning_rate=2e-3, muon_learning_rate=4e-3, warmup=100, decay=0.6, ema=0.998, weight_decay=0.01, save_every=100
)
ATTENTION_TO_THINGS = 24.0
"""What all of a thing's latent pixels together count in the loss, where one pixel of the ground counts 1. A small thing is
4 pixels of 144, and yet a picture is wrong if it is."""
SHIFT_BASE = 2.4
"""Side in latent pixels at which the time shift is 1. Pictures of 96 pixels have 12, and so a shift of 5: what goes where
is decided close to noise, and that is what has to be learnt."""


@dataclass(frozen=True)
class Mix:
    """Samples of each kind in a step, and how often something other than the default size is drawn.

    `most_things` is for text to image and edits; the faulty pictures that `corrections` mend have up to four.
    """

    text_to_image: int = 28
    edits: int = 36
    compositions: int = 8
    corrections: int = 0
    other_sizes: float = 0.08
    most_things: int = 3


Source = Scene | Spoiled | Drawn
"""What a reference shows."""


def show(source: Source, width: int, height: int) -> np.ndarray:
    """The picture [height, width, 3] uint8 of a source. Drawn pictures have one size."""
    if isinstance(source, Drawn):
        return source.pixels
    return render(source, width, height) if isinstance(source, Scene) else render_spoiled(source, width, height)


@dataclass(frozen=True)
class Row:
    """One sample: its prompt's ids, what to draw, what it refers to, and the things that an edit adds or takes away."""

    ids: tuple[int, ...]
    target: Scene
    references: tuple[Source, ...] = ()
    changed: frozenset[Thing] = frozenset()


@dataclass(frozen=True)
class Part:
    """Rows whose prompts are equally long and whose references are equally many; all pictures of one size (width, height)."""

    kind: str
    rows: tuple[Row, ...]
    size: tuple[int, int]
    share: float
    drop_text: bool
    drop_references: bool


class Pool:
    """Many rows of one kind, grouped by length so that batches need no padding."""

    def __init__(self, rows: Sequence[Row]):
        self.groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in rows:
            self.groups[len(row.ids), len(row.references)].append(row)
        self.keys = sorted(self.groups)
        self.counts = [len(self.groups[key]) for key in self.keys]

    def draw(self, rng: random.Random, count: int) -> tuple[Row, ...]:
        """Rows of one group; a group is as likely as it is large."""
        group = self.groups[rng.choices(self.keys, self.counts)[0]]
        return tuple(rng.choice(group) for _ in range(count))


class Examples:
    """Draws every step's parts. Scenes come from a fixed list, so that their latents can be kept; words are always new."""

    ROWS = {"text_to_image": 24000, "edit": 12000, "composition": 8000, "correction": 6000}
    SCENES = {1: 1500, 2: 8000, 3: 12000, 4: 12000}
    EDITS = 20000
    RENEWED = 400

    def __init__(
        self, tokenizer, mix: Mix = Mix(), seed: int = 0, rank: int = 0, workers: int = 1, drawn: Sequence[Drawn] = ()
    ):
        self.tokenizer, self.mix, self.seed = tokenizer, mix, seed
        self.faulty = [(picture, faults) for picture in drawn if (faults := find_faults(picture.wanted, picture.ground, picture.cells))]
        self.mine = slice(rank, None, workers)
        rng = random.Random(seed)
        self.scenes = {n: [draw_scene(rng, n) for _ in range(number)] for n, number in self.SCENES.items()}
        self.references: dict[tuple, list[Scene]] = defaultdict(list)
        for scene in self.scenes[1]:
            self.references[_looks(scene)].append(scene)
        self.age, self.pools = -1, {}

    def batch(self, step: int, rng: random.Random) -> list[Part]:
        if step // self.RENEWED != self.age:
            self.age = step // self.RENEWED
            self._renew(random.Random(self.seed * 7919 + self.age))
        counts = {"text_to_image": self.mix.text_to_image, "edit": self.mix.edits, "composition": self.mix.compositions, "correction": self.mix.corrections}
        total = sum(counts.values())
        parts = []
        for kind, count in counts.items():
            if not count:
                continue
            size = PICTURE_SIZES[0]
            if kind != "correction" and rng.random() < self.mix.other_sizes:
                size = rng.choice(PICTURE_SIZES[1:])
            # Without its text a sample teaches what guidance leaves behind; without its references too, the rest.
            bare = rng.random() < 0.1
            rows = self.pools[kind].draw(rng, count)
            share = len(rows[self.mine]) / total
            parts.append(Part(kind, rows[self.mine], size, share, bare, bare and rng.random() < 0.5))
        return parts

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(generation_prompt(text), add_special_tokens=False).ids)

    def _renew(self, rng: random.Random) -> None:
        rows = []
        for _ in range(self.ROWS["text_to_image"]):
            scene = rng.choice(self.scenes[rng.choice((1, 2, 2, 2, 3, 3) if self.mix.most_things < 4 else (1, 2, 2, 3, 3, 4, 4))])
            rows.append(Row(self._ids(w.describe(rng, vaguer(rng, scene))), scene))
        self.pools["text_to_image"] = Pool(rows)
        rows = []
        for _ in range(self.ROWS["edit"]):
            own = random.Random(rng.randrange(self.EDITS))
            crowded = self.mix.most_things > 3 and own.random() < 0.2
            edit = draw_edit(own, source=draw_scene(own, 4) if crowded else None)
            changed = frozenset(edit.source.things) ^ frozenset(edit.target.things)
            rows.append(Row(self._ids(edit.prompt), edit.target, (edit.source,), changed))
        self.pools["edit"] = Pool(rows)
        rows = []
        for _ in range(self.ROWS["composition"]):
            count = rng.choice((1, 2, 2, 2, 2, 2, 3))
            made = draw_composition(rng, count, rng.choice(self.scenes[count]))
            references = tuple(rng.choice(self.references[_looks(r)] or [r]) for r in made.references)
            rows.append(Row(self._ids(made.prompt), made.target, references))
        self.pools["composition"] = Pool(rows)
        rows = [self._correction(rng) for _ in range(self.ROWS["correction"] if self.mix.corrections else 0)]
        self.pools["correction"] = Pool(rows)

    def _correction(self, rng: random.Random) -> Row:
        if self.faulty and rng.random() < 0.5:
            picture, faults = rng.choice(self.faulty)
            wanted = picture.wanted
        else:
            wanted, faults = rng.choice(self.scenes[rng.randint(1, 4)]), []
            while not faults:
                picture = draw_spoiled(rng, wanted)
                cells = cells_of(picture, render_spoiled(picture, *PICTURE_SIZES[0]))
                faults = find_faults(wanted, picture.scene.ground, cells)
        text = corrections(rng, faults, plain=rng.random() < 0.7)
        return Row(self._ids(text), wanted, (picture,), touched(faults))


def _looks(scene: Scene) -> tuple:
    """What a composition takes over from a one-thing reference."""
    (thing,) = scene.things
    return thing.colour, thing.shape, thing.size


class Latents:
    """Scaled latents of sources, computed once each. `draw` makes a source's picture, as `show` does."""

    def __init__(self, vae: AutoencoderKL, draw: Callable[[Source, int, int], np.ndarray] = show):
        self.vae, self.draw, self.kept = vae, draw, {}

    @torch.no_grad()
    def __call__(self, scenes: Sequence[Source], size: tuple[int, int]) -> Tensor:
        """Latents [B, C, h, w] in fp32."""
        missing = [s for s in dict.fromkeys(scenes) if (s, size) not in self.kept]
        for start in range(0, len(missing), 32):
            some = missing[start : start + 32]
            images = to_tensor(self.draw(s, *size) for s in some).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype() == torch.bfloat16):
                mean = self.vae.encode(images).mean
            latents = self.vae.scale_latents(mean.float()).half()
            self.kept.update(((s, size), latents[i].contiguous()) for i, s in enumerate(some))
        return torch.stack([self.kept[s, size].float() for s in scenes])


@lru_cache(maxsize=None)
def _latent_pixels(thing: Thing, size: tuple[int, int]) -> Tensor:
    """Share of its weight that each latent pixel of a picture (width, height) has in a thing, [h, w], summing to 1."""
    width, height = size
    left, top, right, bottom = cell_box(thing.place, width, height)
    picture = torch.zeros(1, 1, height, width)
    picture[0, 0, top:bottom, left:right] = torch.from_numpy(coverage(thing.shape, thing.size, thing.place, width, height))
    touched = (F.max_pool2d(picture, autoencoder.CONFIG.factor)[0, 0] > 0).float()
    return touched / touched.sum()


def emphasis(rows: Sequence[Row], size: tuple[int, int]) -> Tensor:
    """Weights [B, 1, h, w] of the loss: things count, whatever their size, and twice where an edit changes them."""
    width, height = size
    factor = autoencoder.CONFIG.factor
    weights = torch.ones(len(rows), 1, height // factor, width // factor)
    for weight, row in zip(weights, rows):
        for thing in row.changed.union(row.target.things):
            weight[0] += ATTENTION_TO_THINGS * (2 if thing in row.changed else 1) * _latent_pixels(thing, size)
    return weights


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Plain attention: for short sequences in bfloat16 on a CPU several times faster than the built-in one."""
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


class RMSNorm(nn.RMSNorm):
    """RMSNorm with its weight in the type of its input, which has a fast path."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class TrainingOperations:
    """Layers for fast training on a CPU."""

    Linear = nn.Linear
    LayerNorm = nn.LayerNorm
    RMSNorm = RMSNorm


def initialise(model: OmniGen2Transformer, seed: int = 0) -> None:
    """Starts gates near 0.5 open, the output at 0 and all other matrices normal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.startswith("norm_out.") or "norm1.linear" in name:
                p.zero_()
            else:
                p.normal_(0, 0.02 if "index" in name else p.shape[1] ** -0.5, generator=generator)
            if name.endswith("norm1.linear.bias"):
                width = len(p) // 4
                p[width : 2 * width] = p[3 * width :] = 0.5


def hidden_matrices(model: OmniGen2Transformer) -> list[str]:
    """Names of the matrices of attention and feed-forward layers."""
    return [n for n, p in model.named_parameters() if p.ndim == 2 and (".attn." in n or ".feed_forward." in n)]


def drawing_loss(
    transformer: OmniGen2Transformer,
    mllm: Qwen2_5_VL,
    latents: Latents,
    empty_ids: Sequence[Sequence[int]],
    weigh: Callable[[Sequence[Row], tuple[int, int]], Tensor] | None = emphasis,
):
    """The rectified-flow loss of a part, weighted by its share of the step.

    `empty_ids`: prompts that say nothing. `weigh`: what each latent pixel counts; None for all the same.
    """

    @torch.no_grad()
    def read(part: Part, rng: random.Random) -> Tensor:
        empty = rng.choice(empty_ids)
        ids = torch.tensor([empty if part.drop_text else row.ids for row in part.rows])
        return encode_text(mllm, ids, torch.ones_like(ids))

    def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        text = read(part, rng)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        image = latents([row.target for row in part.rows], part.size)
        references = None
        if part.rows[0].references and not part.drop_references:
            columns = [latents(column, part.size) for column in zip(*(row.references for row in part.rows))]
            references = [[column[i].to(dtype) for column in columns] for i in range(len(part.rows))]
        noise = torch.randn(image.shape, generator=generator)
        time = draw_times([image.shape[-2:]] * len(image), generator, SHIFT_BASE)
        noisy = interpolate(image, noise, time)
        velocity = transformer(noisy.to(dtype), time, text.to(dtype), None, references, attention=attention)
        value = flow_loss(velocity, image, noise, weigh and weigh(part.rows, part.size))
        return value * part.share, {part.kind: value.item()}

    return loss
