"""Teaching the nano encoder to look: to answer, to decide between drawing and answering, to judge and to reflect.

The prompts' hidden states are what the transformer was trained on, so all of this is learnt while they are held to
those of the encoder that it starts from.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..mllm import Qwen2_5_VL
from ..prompts import ASSISTANT_OPENING, IMAGE_PLACE, chat_prompt, generation_prompt, user_turn
from ..reflection.requirements import whole_question
from ..reflection.task import Task
from ..reflection.trained import ANNOUNCEMENT
from ..reflection.verifier import FORM
from ..training import Recipe
from ..vision import preprocess, token_counts
from . import tokens as t
from . import wording as w
from .drawn import Drawn
from .edits import draw_composition, draw_edit
from .encoder import PIXELS, pad
from .faults import Spoiled, corrections, draw_spoiled, reflection
from .judge import Cell
from .questions import KINDS, ask_about
from .seeing import Eyes, Plain, Sight, Sights, View, Views, faults_of, seeing_loss
from .world import DEFAULT_SIZE, PICTURE_SIZES, Scene, draw_scene

RECIPE = Recipe(
    steps=2900, learning_rate=1.5e-3, muon_learning_rate=3e-3, warmup=50, decay=0.8, ema=0.995, bf16=False, save_every=100
)
PLACED_AFTER = 2
"""Layers of the text model after which a visual token should know its cell."""
COMPARED_AFTER = 5
"""Layers of the text model after which a token should know whether its thing or its cell is as told. What belongs together
in a prompt is bound after four; the last is left for what follows from the comparison."""
POINTED_IN = 4
"""The layer, from 0 on, in which a token looks at the cell that the next word is about. By then the opening of an answer knows
what was asked and visual tokens what they show and where they are; the comparison and the word follow from what is found."""
POINTING = 0.5
"""What that counts in the loss. Without it a thing is found by its place at once, but by its looks hardly ever."""
FOUND = 0.5
"""What it counts that such a token knows after this layer which cell it has found. Looks are told of what was found by
themselves, but a place hardly ever."""
WRONG = 4.0
"""How much more a token counts in the comparison whose cell or thing is not as told: in judging most are."""
ASKED = {"caption": 7, "count": 2, "ground": 1, "place": 3, "where": 10, "colour": 5, "shape": 3, "yes_no": 5}
"""How often each kind of question is asked: those that have to find a thing first are learnt last."""
HOLD = 5.0
"""What the held states' mean square error, as a share of their mean square, counts in the loss."""


@dataclass
class Row:
    """One sequence under construction: ids, which of them to learn, its views, and what is to be compared where."""

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    """For each id -1, or twice the kind's number (cell 0, thing 1) plus whether it is as told."""
    pointed: list[int] = field(default_factory=list)
    """For each id -1, or the cell of the picture that it should look at to tell the next."""

    def add(
        self,
        ids: Sequence[int],
        learn: bool = False,
        compared: Sequence[int] | None = None,
        pointed: Sequence[int] | None = None,
    ) -> None:
        nothing = [-1] * len(ids)
        self.ids += ids
        self.learn += [learn] * len(ids)
        self.compared += compared or nothing
        self.pointed += pointed or nothing


@dataclass(frozen=True)
class Part:
    """Rows of one kind, padded: ids, mask, learn, compared, pointed [B, L], views in order, for held rows the plain prompts."""

    kind: str
    ids: Tensor
    mask: Tensor
    learn: Tensor
    compared: Tensor
    pointed: Tensor
    views: tuple[View, ...] = ()
    share: float = 1.0
    """Of the step's rows of this kind, what this process has."""
    held: tuple[tuple[list[int], int], ...] = ()
    """For each row the generation prompt's ids that its states are held to, and how many ids follow them in the row."""


@dataclass(frozen=True)
class Mix:
    """Rows of each kind in a step."""

    held: int = 12
    questions: int = 16
    told: int = 2
    decisions: int = 2
    reflections: int = 20
    verdicts: int = 14
    sights: int = 64


TEXT_MIX = Mix(questions=20, reflections=20, verdicts=16, sights=0)
"""Where the text model alone moves: what is seen is given."""
SEEING_MIX = Mix(held=0, questions=8, told=0, decisions=0, reflections=24, verdicts=24, sights=48)
"""Where the vision tower alone moves: what is told without a picture does not depend on it."""


class Examples:
    """Conversations about pictures, and prompts whose states are held."""

    QUESTIONS = 9

    def __init__(self, tokenizer, drawn: Sequence[Drawn], mix: Mix = Mix(), rank: int = 0, workers: int = 1):
        self.tokenizer, self.views, self.mix = tokenizer, Views(drawn), mix
        self.mine = slice(rank, None, workers)
        self.sights = Sights(drawn, mix.sights, rank, workers)
        self.end = [t.special_id(tokenizer, "<|im_end|>")]
        self.announce = [t.special_id(tokenizer, ANNOUNCEMENT)]
        self.image = t.special_id(tokenizer, "<|image_pad|>")
        self.after = len(self._encode(ASSISTANT_OPENING))

    def batch(self, step: int, rng: random.Random) -> list[Part | Sight]:
        mix, again = self.mix, rng.random() < 0.15
        asked = [self._asked(rng) for _ in range(mix.questions)] + [self._told(rng) for _ in range(mix.told)]
        held = [self._prompt(rng)[0] for _ in range(mix.held)]
        decided = [self._decision(rng) for _ in range(mix.decisions)]
        rows = [self._encode(generation_prompt(text)) for text in held]
        plain = [Row() for _ in rows]
        for row, ids in zip(plain, rows):
            row.add(ids)
        parts = {
            "held": (plain, [(ids, 0) for ids in rows]),
            "decision": ([row for row, _ in decided], [prompt for _, prompt in decided]),
            "answer": (asked, ()),
            "reflection": ([self._reflection(rng, again) for _ in range(mix.reflections)], ()),
            "verdict": ([self._verdict(rng) for _ in range(mix.verdicts)], ()),
        }
        seen = self.sights.batch(step, rng) if mix.sights else []
        return [self._finish(kind, *part) for kind, part in parts.items() if part[0]] + seen

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _finish(self, kind: str, all_rows: Sequence[Row], held=()) -> Part:
        rows = all_rows[self.mine]
        ids, mask = pad([row.ids for row in rows])
        learn = pad([[int(x) for x in row.learn] for row in rows])[0]
        compared, pointed = (pad([[x + 1 for x in own] for own in given])[0] - 1 for given in zip(*((r.compared, r.pointed) for r in rows)))
        views = tuple(view for row in rows for view in row.views)
        return Part(kind, ids, mask, learn, compared, pointed, views, len(rows) / len(all_rows), tuple(held[self.mine]))

    def _with_places(self, chat: str, views: Sequence[View]) -> str:
        """A template with as many image tokens as each view has."""
        parts = chat.split("<|image_pad|>")
        counts = [(v.pixels.shape[0] // PIXELS.factor) * (v.pixels.shape[1] // PIXELS.factor) for v in views]
        return parts[0] + "".join("<|image_pad|>" * count + part for count, part in zip(counts, parts[1:], strict=True))

    def _asked(self, rng: random.Random) -> Row:
        """Several questions about one picture, one after the other."""
        scene = draw_scene(rng, rng.randint(1, 4))
        if self.views.right and rng.random() < 0.3:
            picture = rng.choice(self.views.right)
            scene, view = picture.wanted, View.of_drawn(picture)
        else:
            view = View.of_scene(scene, PICTURE_SIZES[0] if rng.random() < 0.85 else rng.choice(PICTURE_SIZES))
        # What follows a caption can be answered from its words, so it comes last.
        kinds = sorted(rng.choices(list(ASKED), list(ASKED.values()), k=self.QUESTIONS), key="caption".__eq__)
        return self._talk(rng, scene, kinds, [view])

    def _told(self, rng: random.Random) -> Row:
        """Questions about a scene in words."""
        scene = draw_scene(rng, rng.randint(1, 4))
        return self._talk(rng, scene, rng.choices(KINDS[1:], k=2), [], f"{w.describe(rng, scene)}\n")

    def _talk(self, rng: random.Random, scene: Scene, kinds: Sequence[str], views: list[View], before: str = "") -> Row:
        row = Row(views=views)
        for i, kind in enumerate(kinds):
            question, answer, place = ask_about(rng, scene, kind)
            turn = chat_prompt(before + question, len(views)) if i == 0 else "\n" + user_turn(question) + ASSISTANT_OPENING
            turn = self._encode(self._with_places(turn, views if i == 0 else []))
            # The opening's last token tells the answer's first, each of the answer's the next.
            told = self.tokenizer.encode(answer, add_special_tokens=False)
            cells = [place] * len(told.ids)
            if kind == "caption":
                cells = cells_told(scene, answer, told.offsets)
            pointed = [-1 if cell is None or not is_usual(views) else cell for cell in cells]
            compared = 2 + int(answer == "yes") if kind == "yes_no" and views else -1
            row.add(turn, compared=[-1] * (len(turn) - 1) + [compared], pointed=[-1] * (len(turn) - 1) + pointed[:1])
            row.add(told.ids + self.end, learn=True, pointed=[*pointed[1:], -1, -1])
        return row

    def _prompt(self, rng: random.Random) -> tuple[str, list[View]]:
        """Something to draw, with its references."""
        kind = rng.random()
        if kind < 0.4:
            return w.describe(rng, draw_scene(rng, rng.randint(1, 4))), []
        if kind < 0.65:
            edit = draw_edit(rng)
            return edit.prompt, [View.of_scene(edit.source)]
        if kind < 0.8:
            wanted = draw_scene(rng, rng.randint(1, 4))
            view = View.of_spoiled(draw_spoiled(rng, wanted))
            if faults := faults_of(wanted, view):
                return corrections(rng, faults, plain=rng.random() < 0.6), [view]
        made = draw_composition(rng, rng.choice((1, 2, 2, 2, 3)))
        return made.prompt, [View.of_scene(scene) for scene in made.references]

    def _decision(self, rng: random.Random) -> tuple[Row, tuple[list[int], int]]:
        """A wish to have something drawn, which is answered with the announcement of a picture."""
        prompt, views = self._prompt(rng)
        row = Row(views=views)
        row.add(self._encode(self._with_places(chat_prompt(prompt, len(views)), views)))
        row.add(self.announce, learn=True)
        return row, (self._encode(generation_prompt(prompt)), self.after + 1)

    def _judged(self, rng: random.Random) -> tuple[Scene, View]:
        return self.views.judged(rng, rng.choice((1, 2, 3, 3, 4, 4, 4, 4)))

    def _reflection(self, rng: random.Random, again: bool) -> Row:
        """The interleaved sequence: instruction, picture, reflection; with `again` another picture where that asks for it."""
        wanted, view = self._judged(rng)
        row = Row()
        row.add(self._encode(chat_prompt(w.describe(rng, wanted))) + self.announce)
        while True:
            faults = faults_of(wanted, view)
            wrong = {fault.place for fault in faults}
            block = self._encode(self._with_places(IMAGE_PLACE, [view]))
            cells = iter([int(y // 2 * 3 + x // 2 not in wrong) for y in range(6) for x in range(6)])
            row.add(block, compared=[next(cells) if token == self.image else -1 for token in block])
            row.views.append(view)
            row.add(self._encode(reflection(faults)) + (self.announce if faults else self.end), learn=True)
            if not faults or not again or len(row.views) > 1:
                return row
            view = View.of_spoiled(draw_spoiled(rng, wanted) if rng.random() < 0.5 else Spoiled(wanted))

    def _verdict(self, rng: random.Random) -> Row:
        """Whether a picture is what an instruction asks for, and whether it would be what a like one asks for."""
        wanted, view = self._judged(rng)
        row = Row(views=[view])
        other = wanted.with_things([cell.thing for cell in view.cells if cell.thing]) if view.ground else wanted
        if rng.random() < 0.6:
            other = draw_spoiled(rng, other).scene
        for i, told in enumerate((wanted, other)[: 1 if rng.random() < 0.5 or not other.things else 2]):
            faults = faults_of(told, view)
            text, parts = w.describe_parts(rng, told)
            question = FORM.format(pictures="", question=whole_question(Task(text)))
            turn = chat_prompt(question, 1) if i == 0 else "\n" + user_turn(question) + ASSISTANT_OPENING
            turn = self._with_places(turn, [view] if i == 0 else [])
            encoded = self.tokenizer.encode(turn, add_special_tokens=False)
            compared, lowered = [-1] * len(encoded.ids), turn.lower()
            for thing, words in parts:
                end = lowered.index(words.lower()) + len(words)
                last = next(j for j, (_, to) in enumerate(encoded.offsets) if to >= end)
                compared[last] = 2 + int(view.cells[thing.place] == Cell(thing))
            row.add(encoded.ids, compared=compared)
            row.add(self._encode("no" if faults else "yes") + self.end, learn=True)
        return row


def cells_told(scene: Scene, caption: str, offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each token of a scene's canonical wording, by its offsets, the cell that it tells of; None for the ground."""
    ends = [i for i, letter in enumerate(caption) if letter in ",;"]
    cells = [*(thing.place for thing in scene.things), *[None] * (len(ends) + 1 - len(scene.things))]
    return [cells[sum(start >= end for end in ends)] for start, _ in offsets]


def is_usual(views: Sequence[View]) -> bool:
    """Whether there is one picture, of the default size, in which every cell has tokens of its own."""
    return len(views) == 1 and views[0].pixels.shape[:2] == DEFAULT_SIZE


def looking_loss(model: Qwen2_5_VL, eyes: Eyes, teacher: Qwen2_5_VL, plain: Plain | None = None):
    """Next-token loss on what the model should write, what its eyes and middle layers should know, and the hold.

    `plain`: what the tokens of pictures alone are to be.
    What middle layers should know is not asked of a text model that does not move, nor what is seen of a vision tower.
    """
    moves, sees = (any(p.requires_grad for p in part.parameters()) for part in (model.model, model.visual))
    states: dict[int, Tensor] = {}
    for after in {PLACED_AFTER, COMPARED_AFTER, POINTED_IN + 1}:
        model.model.layers[after - 1].register_forward_hook(
            lambda module, given, out, after=after: states.__setitem__(after, out if isinstance(out, Tensor) else out[0])
        )
    cells = torch.tensor([y // 2 * 3 + x // 2 for y in range(6) for x in range(6)])
    seeing = seeing_loss(model, eyes, plain)
    # Other ways to compute attention do not tell the weights.
    model.model.config._attn_implementation = "eager"
    looks: list[Tensor] = []
    model.model.layers[POINTED_IN].self_attn.register_forward_hook(lambda module, given, out: looks.append(out[1]))

    def pointing_loss(part: Part, weights: Tensor) -> tuple[Tensor, float]:
        """Of attention weights [B, heads, L, L]; a head of the model's own choice has to look."""
        rows, at = (part.pointed >= 0).nonzero(as_tuple=True)
        visual = part.ids == model.config.image_token_id
        where = torch.full_like(part.ids, -1)
        for row in rows.unique():
            where[row, visual[row]] = cells
        wanted = where[rows] == part.pointed[rows, at].unsqueeze(1)
        share = (weights[rows, :, at] * wanted.unsqueeze(1)).sum(-1).amax(1)
        return -(share + 1e-4).log().mean(), share.mean().item()

    def compared_loss(part: Part) -> tuple[Tensor, float]:
        loss, right = torch.zeros(()), []
        for i, head in enumerate(eyes.compared.values()):
            where = (part.compared >= 2 * i) & (part.compared < 2 * i + 2)
            if where.any():
                logits, wanted = head(states[COMPARED_AFTER][where]).float(), part.compared[where] - 2 * i
                # Questions are answered with yes as often as with no.
                weight = torch.tensor([1.0 if part.kind == "answer" else WRONG, 1.0])
                loss = loss + F.cross_entropy(logits, wanted, weight=weight)
                right += [(logits.argmax(-1) == wanted)[wanted == value].float().mean().item() for value in wanted.unique()]
        return loss, sum(right) / max(1, len(right))

    def hold(part: Part, hidden: Tensor) -> Tensor:
        ids, mask = pad([own for own, _ in part.held])
        with torch.no_grad():
            told = teacher(ids, mask)
        losses = []
        for i, (own, after) in enumerate(part.held):
            tail, end = len(own), int(part.mask[i].sum()) - after
            # With pictures before it only the message itself can be the same.
            while tail and part.ids[i, end - tail : end].tolist() != own[len(own) - tail :]:
                tail -= 1
            mine, wanted = hidden[i, end - tail : end], told[i, len(own) - tail : len(own)]
            losses.append((mine - wanted).square().mean() / wanted.square().mean())
        return torch.stack(losses).mean()

    def loss(part: Part | Sight, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        if isinstance(part, Sight):
            seen, figures = seeing(part, generator)
            return seen, {"sight_" + name: value for name, value in figures.items()}
        figures: dict[str, float] = {}
        seen = grid = None
        if part.views:
            values, grid = preprocess([Image.fromarray(view.pixels) for view in part.views], PIXELS)
            seen = model.look(values, grid)
        looks.clear()
        hidden = model(part.ids, part.mask, grid=grid, visual=seen)
        total = torch.zeros(())
        if part.held:
            held = hold(part, hidden)
            total, figures[f"{part.kind}_hold"] = total + HOLD * held, held.item()
        if part.views:
            counts = token_counts(grid, PIXELS.merge_size)
            default = [c == 36 and v.pixels.shape[:2] == DEFAULT_SIZE for c, v in zip(counts, part.views)]
            chosen = torch.cat([torch.full((c,), d) for c, d in zip(counts, default)])
            if any(default) and sees:
                sight, _ = eyes.seeing_loss(seen[chosen], [v for v, d in zip(part.views, default) if d])
                total, figures["seeing"] = total + 0.3 * sight, sight.item()
            if any(default) and moves:
                places = eyes.placed(states[PLACED_AFTER][part.ids == model.config.image_token_id][chosen])
                wanted = cells.repeat(sum(default))
                total = total + 0.3 * F.cross_entropy(places, wanted)
                figures["placed_right"] = (places.argmax(-1) == wanted).float().mean().item()
        if moves and (part.compared >= 0).any():
            compared, right = compared_loss(part)
            total = total + compared
            figures[f"{part.kind}_compared"] = right
        if moves and (part.pointed >= 0).any():
            pointing, share = pointing_loss(part, looks[0])
            total = total + POINTING * pointing
            figures[f"{part.kind}_pointed"] = share
            ends = part.pointed >= 0
            found, wanted = eyes.found(states[POINTED_IN + 1][ends]), part.pointed[ends]
            total = total + FOUND * F.cross_entropy(found, wanted)
            figures[f"{part.kind}_found"] = (found.argmax(-1) == wanted).float().mean().item()
        learn = part.learn[:, 1:].bool()
        if learn.any():
            logits, wanted = model.logits(hidden[:, :-1][learn]).float(), part.ids[:, 1:][learn]
            words = F.cross_entropy(logits, wanted)
            total = total + words
            right = (logits.argmax(-1) == wanted).float()
            figures |= {f"{part.kind}_loss": words.item(), f"{part.kind}_right": right.mean().item()}
            figures[f"{part.kind}_first"] = first_right(part, right)
        return total * part.share, figures

    return loss


def first_right(part: Part, right: Tensor) -> float:
    """Share of right ones among the first tokens of what is written, which in verdicts and reflections decide."""
    learn = part.learn[:, 1:].bool()
    begins = learn & ~F.pad(learn, (1, 0))[:, :-1]
    return right[begins[learn]].mean().item()
