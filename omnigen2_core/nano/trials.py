"""What the nano model makes of hard prompts, at once, by reflection and as the best of several, and what it answers.

This is the part of `reflection_score` that runs in each of its processes. Every number has a prompt, a question and a
message of its own, which follow from it and the seed alone, so it does not matter how the numbers are shared out.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from PIL import Image

from .. import reflection as r
from ..assistant import Assistant
from ..chat import reply
from ..conversation import Conversation
from ..pipeline import OmniGen2Pipeline
from ..reflection.loop import OVERRULE
from ..understanding import ask as answer
from . import wording as w
from .drawn import HARD_STEPS, MENDING
from .edits import draw_edit
from .faults import leeway
from .questions import KINDS, ask
from .score import Task, judge_task
from .world import DEFAULT_SIZE, MAX_THINGS, Scene, draw_scene, render

ROUNDS = 2
"""Reflections that are followed at most."""


@dataclass(frozen=True)
class Tools:
    """Who draws, looks and answers."""

    draw: r.Drawer
    reflector: r.Reflector
    verifier: r.Verifier
    assistant: Assistant


@lru_cache(maxsize=1)
def load_tools(folder: Path, steps: int = HARD_STEPS, guided: bool = True, lora: Path | None = None) -> Tools:
    """A model folder at work, on the processor. Its first picture, which takes longer than all others, is drawn.

    First drawings and corrections are guided alike: at so few steps guidance spoils colours, so correcting without it would
    gain by that alone.

    guided: whether it draws with the folder's own guidance, else without any. lora: with which everything is drawn.
    """
    pipeline = OmniGen2Pipeline.from_folder(folder, device="cpu")
    if lora:
        pipeline.load_lora(lora)
    assistant = pipeline.assistant()

    def draw(prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image:
        settings = {"size": DEFAULT_SIZE, "steps": steps, "guidance": None if guided else MENDING}
        return pipeline.generate(prompt, references=[list(references)], seeds=seed, **settings)[0]

    draw("", (), 0)
    reflector = r.TrainedReflector(r.assistant_writer(assistant))
    return Tools(draw, reflector, r.trained_verifier(r.model_looker(assistant)), assistant)


class RememberingDrawer:
    """A `Drawer` that draws nothing twice, and knows of every picture how long it took.

    So ways that begin with the same picture can share it, and each be charged for it. References count as the same
    where they are the same objects.
    """

    def __init__(self, draw: r.Drawer):
        self._draw = draw
        self._drawn: dict[tuple, tuple[Image.Image, float]] = {}
        self._kept: list[tuple] = []  # An object's id is its own only while it is there.

    def __call__(self, prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image:
        key = (prompt, tuple(map(id, references)), seed)
        if key not in self._drawn:
            start = time.perf_counter()
            picture = self._draw(prompt, references, seed)
            self._drawn[key] = picture, time.perf_counter() - start
            self._kept.append(tuple(references))
        return self._drawn[key][0]

    def seconds(self, picture: Image.Image) -> float:
        """How long a picture of this drawer took."""
        return next(seconds for drawn, seconds in self._drawn.values() if drawn is picture)


@dataclass(frozen=True)
class Try:
    """A result: whether the scene is exact, and the seconds for all drawing and looking up to there."""

    right: bool
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One prompt in all ways, from the same first picture.

    `loop` has the result after following 0, 1, ... reflections, the last for ever once it stopped; `best_of` that of 1, 2, ... seeds,
    and `until` that of as many at most, where the first picture that the verifier holds right is the last;
    `accepted`: whether the loop let the first picture pass; `stop`: why it ended; `leeway`: see `faults.leeway`, of the first
    picture.
    """

    one_shot: Try
    loop: tuple[Try, ...]
    best_of: tuple[Try, ...]
    until: tuple[Try, ...]
    accepted: bool
    stop: r.Stop
    leeway: float


@dataclass(frozen=True)
class Answered:
    """What was asked about which scene, what is right, and what was said."""

    asked: str
    about: str
    wanted: str
    said: str

    @property
    def right(self) -> bool:
        """Whether it is word for word what is right."""
        return self.said == self.wanted


@dataclass(frozen=True)
class Share:
    """Some numbers' trials, questions and decisions; `rows` tell of all of them where they are to be kept."""

    trials: tuple[Trial, ...] = ()
    questions: tuple[Answered, ...] = ()
    decisions: tuple[Answered, ...] = ()
    rows: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    def __add__(self, other: "Share") -> "Share":
        pairs = zip(vars(self).values(), vars(other).values())
        return Share(*(mine + others for mine, others in pairs))


def measure(tools: Tools, seed: int, numbers: Sequence[int], seeds: int, save: Path | None = None) -> Share:
    """Everything for these numbers, best of N with up to `seeds` seeds. `save`: a folder for the pictures."""
    trials, rows = [], []
    for number in numbers:
        hard, drawer = draw_hard(seed, number), RememberingDrawer(tools.draw)
        loop, several = run_both(tools, drawer, hard, seeds)
        trials.append(make_trial(loop, several, drawer, hard))
        if save:
            runs = {"loop": loop, "best_of": several}
            kept = {name: _keep(save, f"{number:04}_{name}", run, hard.is_right) for name, run in runs.items()}
            rows.append({"kind": "hard", "number": number, "wanted": w.canonical(hard.task.wanted)} | kept)
    questions = answer_questions(tools.assistant, [draw_question(seed, number) for number in numbers])
    decisions = [decide(tools.assistant, draw_message(seed, number)) for number in numbers]
    if save:
        for kind, answers in (("question", questions), ("decision", decisions)):
            rows += [{"kind": kind, **vars(said), "right": said.right} for said in answers]
    return Share(tuple(trials), tuple(questions), tuple(decisions), tuple(rows))


def measure_share(
    folder: Path, steps: int, guided: bool, lora: Path | None, seed: int, seeds: int, save: Path | None, numbers: Sequence[int]
) -> Share:
    """`measure` in a process of its own, on one core, with what `load_tools` gives."""
    return measure(load_tools(folder, steps, guided, lora), seed, numbers, seeds, save)


# Hard prompts


@dataclass(frozen=True)
class Hard:
    """A hard prompt, and the seed of its first picture."""

    task: Task
    seed: int

    def is_right(self, picture: Image.Image) -> bool:
        """Whether a picture's scene is exact, by its pixels."""
        return judge_task(self.task, self.seed, picture).right

    def leeway(self, picture: Image.Image) -> float:
        """How far that judgement is from being another, see `faults.leeway`."""
        return leeway(self.task.wanted, np.asarray(picture.convert("RGB")))


def draw_hard(seed: int, number: int) -> Hard:
    """A prompt for as many things as the world has room for."""
    rng = random.Random(f"score hard {seed} {number}")
    scene = draw_scene(rng, MAX_THINGS)
    return Hard(Task(w.describe(rng, scene), scene), rng.randrange(2**31))


def run_both(tools: Tools, drawer: RememberingDrawer, hard: Hard, seeds: int) -> tuple[r.Record, r.Record]:
    """The reflection loop on a prompt, and the best of several seeds from the same first one on. Both look for themselves."""
    task, seed = r.Task(hard.task.prompt), hard.seed
    tools.assistant.forget()
    loop = r.reflect(task, drawer, tools.reflector, tools.verifier, rounds=ROUNDS, seed=seed)
    tools.assistant.forget()
    return loop, r.best_of(task, drawer, tools.verifier, range(seed, seed + seeds))


def make_trial(loop: r.Record, several: r.Record, drawer: RememberingDrawer, hard: Hard) -> Trial:
    """What the two runs amount to by the judge of pixels."""
    first, right = loop.rounds[0].picture, hard.is_right
    tries = [made for made, ends in zip(progress(loop, drawer, right), _ends(loop)) if ends]
    tries += tries[-1:] * (1 + ROUNDS - len(tries))
    one_shot = Try(right(first), drawer.seconds(first))
    # Whatever it finds wrong the loop follows at once, so a picture that was not followed up has passed.
    accepted, leeway = len(loop.rounds) == 1, hard.leeway(first)
    drawn = progress(several, drawer, right)
    return Trial(one_shot, tuple(tries), tuple(drawn), tuple(until_held_right(several, drawn)), accepted, loop.stop, leeway)


def _ends(record: r.Record) -> list[bool]:
    """For each picture whether it is the last that follows its reflection."""
    parents = [entry.parent for entry in record.rounds]
    return [here != following for here, following in zip(parents, parents[1:])] + [True]


def progress(record: r.Record, drawer: RememberingDrawer, right: Callable[[Image.Image], bool]) -> list[Try]:
    """What a run would have given, had it ended after each of its pictures."""
    tries, best, seconds = [], record.rounds[0], 0.0
    for entry in record.rounds:
        best = entry if entry.helped else best
        looking = sum(time for stage, time in entry.seconds.items() if stage != r.Stage.DRAW.value)
        seconds += drawer.seconds(entry.picture) + looking
        tries.append(Try(right(best.picture), seconds))
    return tries


def until_held_right(several: r.Record, drawn: Sequence[Try]) -> list[Try]:
    """What `progress` tells of seeds one after the other, had they ended with the first picture that the verifier holds right."""
    right = (i for i, entry in enumerate(several.rounds) if entry.score.least >= OVERRULE)
    last = next(right, len(drawn) - 1)
    return [drawn[min(i, last)] for i in range(len(drawn))]


def _keep(folder: Path, name: str, record: r.Record, right: Callable[[Image.Image], bool]) -> dict[str, Any]:
    """Writes a run's pictures; its transcript, with their files and which of them are right."""
    pictures = [f"hard/{name}_{entry.index}.png" for entry in record.rounds]
    for file, entry in zip(pictures, record.rounds):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        entry.picture.save(folder / file)
    return {**r.to_dict(record), "pictures": pictures, "right": [right(entry.picture) for entry in record.rounds]}


# Questions


def draw_question(seed: int, number: int) -> tuple[str, str, Scene]:
    """A question, its answer and the scene that it is about; kinds and numbers of things take turns."""
    rng = random.Random(f"score question {seed} {number}")
    scene = draw_scene(rng, 1 + number // len(KINDS) % MAX_THINGS)
    return *ask(rng, scene, KINDS[number % len(KINDS)]), scene


def answer_questions(assistant: Assistant, asked: Sequence[tuple[str, str, Scene]]) -> list[Answered]:
    """What the model says to questions about pictures."""
    shown = [[_picture(scene)] for _, _, scene in asked]
    said = answer(assistant, [question for question, _, _ in asked], shown, batch=len(asked))
    return [
        Answered(question, w.canonical(scene), wanted, words.text.strip())
        for (question, wanted, scene), words in zip(asked, said)
    ]


# Drawing or answering


def draw_message(seed: int, number: int) -> tuple[str, Scene | None, str]:
    """A message, the scene whose picture comes with it, and what it asks for; "draw" and "answer" take turns."""
    rng = random.Random(f"score message {seed} {number}")
    things = 1 + number // 4 % MAX_THINGS
    if number % 4 == 0:
        return w.describe(rng, draw_scene(rng, things)), None, "draw"
    if number % 4 == 2:
        edit = draw_edit(rng)
        return edit.prompt, edit.source, "draw"
    scene = draw_scene(rng, things)
    if number % 4 == 1:
        return ask(rng, scene)[0], scene, "answer"
    # To describe what was just described could as well be drawn.
    kind = rng.choice([kind for kind in KINDS if kind != "caption"])
    return f"{w.describe(rng, scene)}\n{ask(rng, scene, kind)[0]}", None, "answer"


def decide(assistant: Assistant, message: tuple[str, Scene | None, str]) -> Answered:
    """Whether the model draws or answers when a chat begins with this message."""
    text, scene, wanted = message
    pictures = {"shown.png": _picture(scene)} if scene else {}
    said = reply(
        assistant,
        Conversation(),
        text,
        tuple(pictures),
        load=pictures.__getitem__,
        draw=lambda drawing: ["drawn.png"],
        # The first token decides.
        max_new_tokens=1,
    )
    return Answered(text, w.canonical(scene) if scene else "", wanted, "draw" if said.turn.images else "answer")


def _picture(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene, *DEFAULT_SIZE))
