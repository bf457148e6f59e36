"""Training the nano model's encoder: a small Qwen2.5-VL that reads prompts, looks at pictures and answers.

Prompts are read by a throw-away decoder that must write their meaning from the last hidden states, since those
states are all that the diffusion transformer will get.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..mllm import Qwen2_5_VL
from ..prompts import chat_prompt, generation_prompt
from ..training import Recipe
from ..vision import PixelConfig, preprocess, token_counts
from . import binding
from . import tokens as t
from . import wording as w
from .edits import draw_composition, draw_edit
from .questions import ask
from .world import PICTURE_SIZES, Scene, draw_scene, render

PIXELS = PixelConfig(patch_size=8, min_pixels=48 * 48, max_pixels=160 * 160)
RECIPE = Recipe(
    steps=2400, learning_rate=2e-3, muon_learning_rate=3e-3, warmup=100, decay=0.6, ema=0.995, bf16=False, save_every=400
)
READ_BATCH, ANSWER_BATCH, LOOK_BATCH = 32, 16, 16
WIDTH = 160


def config(tokenizer) -> dict[str, Any]:
    """The encoder's `config.json`."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": (tokenizer.get_vocab_size() + 31) // 32 * 32,
        "hidden_size": WIDTH,
        "intermediate_size": 448,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        # Rows and columns of a picture are few here, and only the first frequencies turn far enough to tell them apart.
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 17]},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "image_token_id": t.special_id(tokenizer, "<|image_pad|>"),
        "video_token_id": t.special_id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": t.special_id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": t.special_id(tokenizer, "<|vision_end|>"),
        "vision_token_id": t.special_id(tokenizer, "<|vision_pad|>"),
        "eos_token_id": t.special_id(tokenizer, "<|im_end|>"),
        "pad_token_id": t.special_id(tokenizer, "<|endoftext|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            # A patch has 192 values, and whether a thing is what was asked for can be a matter of a few of them.
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 8,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [3],
            "hidden_act": "silu",
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": PIXELS.patch_size,
            "spatial_patch_size": PIXELS.patch_size,
            "spatial_merge_size": PIXELS.merge_size,
            "temporal_patch_size": PIXELS.temporal_patch_size,
            # One cell of the world's layout at its default size.
            "window_size": 32,
        },
    }


def initialise(model: Qwen2_5_VL, seed: int = 0) -> None:
    """Gives all weights their start: norms 1, biases 0, the rest normal."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            elif "embed_tokens" in name:
                parameter.normal_(0, 0.05, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


def hidden_matrices(model: Qwen2_5_VL, prefix: str = "") -> list[str]:
    """Names of the matrices between the embeddings and the ends."""
    return [prefix + n for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]


class Reader(nn.Module):
    """Writes a prompt's meaning from its hidden states alone. Needed in training only."""

    def __init__(self, vocabulary: int, width: int = WIDTH, longest: int = 64):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.layer = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        self.bound = nn.ModuleDict({name: nn.Linear(width, count) for name, count in binding.CLASSES.items()})

    def forward(self, ids: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, L, vocabulary] of what follows each of ids [B, L], given a prompt's hidden states [B, K, D] and mask."""
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        causal = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        x = self.layer(x, hidden, tgt_mask=causal, memory_key_padding_mask=mask == 0)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Part:
    """One kind of example: padded ids [B, L], their mask, which ids to learn [B, L], pictures, meanings [B, M] (0 ends).

    `bound` has for each attribute the class [B, L] that a token's thing is known to have by then, -1 where none is.
    """

    kind: str
    ids: Tensor
    mask: Tensor
    learn: Tensor
    pixels: tuple[Tensor, Tensor] | None = None
    meaning: Tensor | None = None
    bound: dict[str, Tensor] | None = None


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L], padded right with 0."""
    tensors = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def question_prompt(text: str, tokenizer, pictures: Sequence[int] = ()) -> list[int]:
    """Ids of the chat template with places for pictures of so many tokens each, up to where the answer starts."""
    parts = chat_prompt(text, len(pictures)).split("<|image_pad|>")
    chat = parts[0] + "".join("<|image_pad|>" * count + part for count, part in zip(pictures, parts[1:]))
    return tokenizer.encode(chat, add_special_tokens=False).ids


def vaguer(rng: random.Random, scene: Scene) -> Scene:
    """Sometimes leaves a few attributes of a scene open."""
    if rng.random() < 0.8:
        return scene
    things = []
    for thing in scene.things:
        open_fields = [f for f in ("place", "size", "size") if rng.random() < 0.4]
        things.append(thing.but(**{f: None for f in open_fields}))
    return Scene(None if rng.random() < 0.3 else scene.ground, tuple(things))


class Examples:
    """Prompts to read and, by turns, questions about told scenes and about pictures."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def batch(self, step: int, rng: random.Random) -> list[Part]:
        return [self._read(rng), self._look(rng) if step % 2 else self._answer(rng)]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _read(self, rng: random.Random) -> Part:
        rows, meanings, bound = [], [], []
        for _ in range(READ_BATCH):
            parts: list[tuple[dict[str, int], str]] = []
            kind = rng.random()
            if kind < 0.6:
                scene = vaguer(rng, draw_scene(rng, rng.choice((1, 2, 2, 3, 3, 3, 4))))
                text, told = w.describe_parts(rng, scene)
                parts, meaning = [(binding.attributes(thing), words) for thing, words in told], w.canonical(scene)
            elif kind < 0.8:
                edit = draw_edit(rng)
                text, meaning = edit.prompt, edit.meaning
            else:
                made = draw_composition(rng, rng.randint(1, 3))
                text, meaning = made.prompt, made.meaning
                parts = binding.composition_parts(made)
            encoded = self.tokenizer.encode(generation_prompt(text), add_special_tokens=False)
            rows.append(encoded.ids)
            bound.append(binding.classes(generation_prompt(text), encoded.offsets, parts))
            meanings.append(self._encode(meaning) + [t.special_id(self.tokenizer, "<|im_end|>")])
        ids, mask = pad(rows)
        labels = {name: pad([[label + 1 for label in row[name]] for row in bound])[0] - 1 for name in binding.CLASSES}
        return Part("read", ids, mask, mask.clone(), meaning=pad(meanings)[0], bound=labels)

    def _finish(self, kind: str, rows, pixels=None) -> Part:
        end = [t.special_id(self.tokenizer, "<|im_end|>")]
        ids, mask = pad([question + answer + end for question, answer in rows])
        learn = mask.clone()
        for i, (question, _) in enumerate(rows):
            learn[i, : len(question)] = 0
        return Part(kind, ids, mask, learn, pixels)

    def _answer(self, rng: random.Random) -> Part:
        rows = []
        for _ in range(ANSWER_BATCH):
            scene = draw_scene(rng, rng.randint(1, 4))
            question, answer = ask(rng, scene)
            if answer == w.canonical(scene):
                question = "Describe: "
            told = f"{w.describe(rng, scene)}\n{question}"
            rows.append((question_prompt(told, self.tokenizer), self._encode(answer)))
        return self._finish("answer", rows)

    def _look(self, rng: random.Random) -> Part:
        rows, pictures, questions = [], [], []
        for _ in range(LOOK_BATCH):
            scene = draw_scene(rng, rng.randint(1, 4))
            size = PICTURE_SIZES[0] if rng.random() < 0.8 else rng.choice(PICTURE_SIZES)
            pictures.append(Image.fromarray(render(scene, *size)))
            questions.append(ask(rng, scene, "caption" if rng.random() < 0.5 else None))
        values, grid = preprocess(pictures, PIXELS)
        for (question, answer), count in zip(questions, token_counts(grid, PIXELS.merge_size)):
            rows.append((question_prompt(question, self.tokenizer, [count]), self._encode(answer)))
        return self._finish("look", rows, (values, grid))


def encoder_loss(model: Qwen2_5_VL, reader: Reader | None):
    """Next-token loss on answers, the reader's loss on prompts, and a little next-token loss on prompts."""

    def next_token(hidden: Tensor, part: Part) -> tuple[Tensor, float]:
        learn = part.learn[:, 1:].bool()
        logits = model.logits(hidden[:, :-1][learn]).float()
        wanted = part.ids[:, 1:][learn]
        return F.cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean().item()

    def loss(part: Part, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        hidden = model(part.ids, part.mask, *(part.pixels or ()))
        words, right = next_token(hidden, part)
        if part.meaning is None:
            return words, {f"{part.kind}_loss": words.item(), f"{part.kind}_right": right}
        noise = 0.05 * torch.randn(hidden.shape, generator=generator)
        written = F.pad(part.meaning, (1, 0))[:, :-1]
        logits = reader(written, hidden.float() + noise, part.mask).float()
        # 0 pads; the first 0 after the end is not learnt, the end itself is.
        real = part.meaning != 0
        meaning = F.cross_entropy(logits[real], part.meaning[real])
        exact = ((logits.argmax(-1) == part.meaning) | ~real).all(dim=1).float().mean().item()
        bound = []
        for name, head in reader.bound.items():
            known = part.bound[name] >= 0
            bound.append(F.cross_entropy(head(hidden[known]).float(), part.bound[name][known]))
        figures = {"meaning_loss": meaning.item(), "meaning_exact": exact, "bound_loss": sum(bound).item()}
        return meaning + 0.1 * words + sum(bound), figures

    return loss
