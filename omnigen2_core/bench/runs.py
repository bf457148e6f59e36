"""Many runs in a row on a real server, with changing sizes, LoRAs and cancels: does memory grow?"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from .results import Claim, Results
from .verdict import Bar, Estimate, estimate

RUNS, FROM = 100, 20
"""Runs in all, and the one after which memory is compared with that after the last."""
AROUND = 5
"""How many runs' memory, up to a run's, is taken for that run: sizes differ, and so does what is held after each."""
BAR = Bar(2.0, at_most=True)
SEED = 20250623
STEPS = 4
CANCELLED = 0.25
"""The share of runs that are cancelled, at a time drawn from `CANCEL_SECONDS` after they begin."""
CANCEL_SECONDS = (0.0, 1.0)
SIZES = ((64, 64), (96, 96), (128, 128), (96, 64), (112, 128))
"""Each is drawn at before memory is first compared: libraries keep what they prepare for a new size."""
SIDES = (64, 96, 128)
"""Of the input pictures, in pixels."""
PICTURES = 3
BUILT_IN = "OmniGen2-nano (built in)"
BUILT_IN_LORA = "OmniGen2-nano framed (built in)"
OTHER_LORA = "other.safetensors"
SUBJECTS = ("A large red circle", "A small blue square", "Two shapes: a large green cross and a small white ring")


@dataclass(frozen=True)
class Planned:
    """One run.

    size: width and height in pixels. references: names of input pictures. lora: its name and strength. cancel_after: seconds,
    None to let it end.
    """

    seed: int
    size: tuple[int, int]
    subject: str
    references: tuple[str, ...]
    lora: tuple[str, float] | None
    cancel_after: float | None

    @property
    def prompt(self) -> dict:
        """The run as ComfyUI's API takes it."""
        nodes = {"load": node("OmniGen2LoadFolder", folder=BUILT_IN, dtype="auto")}
        model = ["load", 0]
        if self.lora is not None:
            name, strength = self.lora
            nodes["lora"] = node("OmniGen2LoadLoRA", model=model, lora_name=name, strength=strength)
            model = ["lora", 0]
        images = {f"images.image_{i}": [f"picture {i}", 0] for i in range(1, 1 + len(self.references))}
        for i, name in enumerate(self.references, start=1):
            nodes[f"picture {i}"] = node("LoadImage", image=name)
        nodes["encode"] = node(
            "OmniGen2Encode", clip=["load", 1], prompt=self.subject, negative_prompt="", width=self.size[0],
            height=self.size[1], match_reference=False, max_pixels=0, max_side=0, encoder_sees_images=bool(images),
            batch_size=1, **({"vae": ["load", 2]} if images else {}), **images,
        )  # fmt: skip
        nodes["sample"] = node(
            "OmniGen2Sample", model=model, positive=["encode", 0], latent=["encode", 3], negative_ref=["encode", 1],
            negative=["encode", 2], seed=self.seed, steps=STEPS, solver="euler", text_guidance=2.0, image_guidance=1.5,
            guidance_start=0.0, guidance_end=0.8, shift="auto", denoise=1.0,
        )  # fmt: skip
        nodes["decode"] = node("VAEDecode", samples=["sample", 0], vae=["load", 2])
        nodes["preview"] = node("PreviewImage", images=["decode", 0])
        return nodes


def plan(count: int) -> list[Planned]:
    """The same runs each time; the first and the last are not cancelled."""
    draw = random.Random(SEED)
    runs = [
        Planned(
            seed=draw.randrange(2**32),
            size=draw.choice(SIZES),
            subject=f"{draw.choice(SUBJECTS)} on a {draw.choice(('white', 'black', 'yellow'))} background",
            references=tuple(draw.sample(_names(), draw.choice((0, 0, 1, 2)))),
            lora=draw.choice((None, None, *((name, s) for name in (BUILT_IN_LORA, OTHER_LORA) for s in (0.5, 1.0)))),
            cancel_after=draw.uniform(*CANCEL_SECONDS) if draw.random() < CANCELLED else None,
        )
        for _ in range(count)
    ]
    return [replace(run, cancel_after=None) if i in (0, count - 1) else run for i, run in enumerate(runs)]


def measure(
    host: ModuleType, results: Results, lora: Path, *, on_card: bool = False, count: int = RUNS, first: int = FROM
) -> None:
    """Adds by how much memory grew from run `first` to run `count`. lora: the built-in LoRA, which a second one is made of."""
    flags, held, cards, ends = [] if on_card else ["--cpu"], [], [], []
    with tempfile.TemporaryDirectory(prefix="omnigen2-", ignore_cleanup_errors=True) as folder:
        # Of so small a model one thread draws a picture no later, and much sooner where others compute too.
        server = host.server(Path(folder), *flags, threads=1)
        _write_inputs(server.base, lora)
        with server:
            for number, run in enumerate(plan(count), start=1):
                ends.append(server.run(run.prompt, cancel_after=run.cancel_after))
                held.append(server.memory())
                cards.append(server.device_memory())
                if number % 10 == 0:
                    print(f"   run {number}: {held[-1] / 1e6:,.0f} MB", flush=True)
    what = f"built-in model, {count} runs in a row: growth from run {first} to run {count}"
    results.claims.append(Claim.judged(f"{what}, the server's memory", growth(held, first), BAR, " %"))
    if None not in cards:
        results.claims.append(Claim.judged(f"{what}, memory of the card", growth(cards, first), BAR, " %"))
    cancelled, told = ends.count("interrupted"), sorted({1, first // 2, first, (first + count) // 2, count})
    results.notes.append(
        f"{what}: text to image, edits with one and two references, {len(SIZES)} sizes of {SIZES[0][0]}x{SIZES[0][1]} "
        f"to 128x128, two LoRAs at two strengths and none, drawn with seed {SEED}; {cancelled} runs were cancelled. A run's memory is the median "
        f"of those after the {AROUND} runs up to it. MB held after runs "
        + ", ".join(f"{number}: {held[number - 1] / 1e6:,.0f}" for number in told) + "."
    )


def growth(held: list[int], first: int) -> Estimate:
    """Percent by which memory after the last runs is above that after the runs up to number `first`."""
    around = min(AROUND, first, len(held) - first)
    # No pairs: the two are not measured together.
    groups = [{"first": held[first - around : first]}, {"last": held[-around:]}]
    return estimate(groups, lambda medians: 100 * (medians["last"] / medians["first"] - 1))


def _write_inputs(base: Path, lora: Path) -> None:
    """Pictures of several sizes, and a LoRA that takes away what the built-in one adds."""
    draw = np.random.default_rng(SEED)
    for name, side in zip(_names(), SIDES):
        Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(base / "input" / name)
    save_file({name: -values for name, values in load_file(lora).items()}, base / "models" / "loras" / OTHER_LORA)


def _names() -> list[str]:
    return [f"bench-{i}.png" for i in range(PICTURES)]


def node(class_type: str, **inputs: object) -> dict:
    """A node as ComfyUI's API takes it."""
    return {"class_type": class_type, "inputs": inputs}
