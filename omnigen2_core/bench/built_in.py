"""The built-in model: whole runs of the plain path, of ours and of the presets, and how far ours is from the plain path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from PIL import Image
from torch import Tensor

from ..acceleration.presets import PRESETS, Acceleration
from ..acceleration.protocol import Run
from ..guidance import Guidance, branches, combine
from ..joint import LayerStack
from ..nano.folder import WEIGHTS
from ..nano.score import draw_tasks
from ..nano.world import DEFAULT_SIZE, render
from ..pipeline import EncodedText, OmniGen2Pipeline
from ..precision import Precision
from ..prompts import DEFAULT_NEGATIVE_PROMPT
from ..sampler import sample
from ..schedule import timesteps
from ..transformer import OmniGen2Transformer
from .cases import TASKS, TITLES
from .patterns import KINDS, PLAIN, Patterns
from .results import POINTS, Claim, Results, RunRow
from .timing import Effort, interleaved
from .verdict import Bar, Estimate, estimate

FP32_BAR, BF16_BAR = Bar(1e-4, at_most=True), Bar(45.0)
SEED = 5


@dataclass(frozen=True)
class Scene:
    """One picture to be made: what goes into `OmniGen2Pipeline.sample_latents`."""

    text: EncodedText
    negative: EncodedText
    noise: Tensor
    references: list[list[Tensor]]


def draw_scene(pipeline: OmniGen2Pipeline, task: str) -> Scene:
    """A prompt of the built-in world with as many references as the task has."""
    drawn = draw_tasks(KINDS[task], SEED, 3)
    scenes = [scene for one in drawn for scene in one.references][: TASKS[task]]
    pictures = [Image.fromarray(render(scene, *DEFAULT_SIZE)) for scene in scenes]
    with torch.inference_mode():
        return Scene(
            pipeline.encode_prompts([drawn[0].prompt]),
            pipeline.encode_prompts([DEFAULT_NEGATIVE_PROMPT]),
            pipeline.noise([SEED], *DEFAULT_SIZE),
            [[pipeline.encode_reference(picture) for picture in pictures]],
        )


def run(pipeline: OmniGen2Pipeline, scene: Scene, acceleration: Acceleration, steps: int, solver: str) -> tuple[Tensor, Run]:
    """The latents of a run through the pipeline, and what it remembers."""
    made: list[Run] = []

    def make_run(count: int) -> Run:
        made.append(acceleration.run(count))
        return made[-1]

    latents = pipeline.sample_latents(
        scene.text, scene.negative, scene.noise, scene.references, steps=steps, solver=solver, make_run=make_run
    )
    return latents, made[-1]


@torch.inference_mode()
def run_plainly(pipeline: OmniGen2Pipeline, scene: Scene, steps: int) -> Tensor:
    """The latents of a run in which every evaluation computes everything by itself, in separate operations."""
    profile, dtype, transformer = pipeline.profile, pipeline.dtype, pipeline.transformer
    guidance = Guidance(profile.text_guidance, profile.image_guidance, (0.0, profile.guidance_end))
    references = [[reference.to(dtype) for reference in some] for some in scene.references]

    def denoise(x: Tensor, t: float, step: int) -> Tensor:
        found = {}
        for branch in branches(guidance, step, steps, any(map(len, references))):
            text = scene.text if branch == "cond" else scene.negative
            inputs = (x.to(dtype), torch.full((len(x),), t), text.hidden.to(dtype), text.mask)
            found[branch] = plain_velocity(transformer, *inputs, None if branch == "uncond" else references)
        return combine(found, guidance)

    times = timesteps(steps, *scene.noise.shape[-2:], shift="auto", base=profile.shift_base)
    return sample(denoise, scene.noise, times)


def plain_velocity(transformer: OmniGen2Transformer, latents: Tensor, *inputs) -> Tensor:
    """The transformer's velocity with nothing shared, nothing left out and nothing fused."""
    precision = Precision(latents.dtype)
    joint = transformer.refine(latents, *inputs, precision=precision)
    stack, hidden = LayerStack(transformer.layers, joint, precision), joint.hidden
    for index in range(len(stack)):
        hidden = stack.layer(index, hidden)
    return transformer.project_out(joint.image(hidden), joint, precision)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise of pictures in -1..1, in dB."""
    return 10 * math.log10(4 / max((a - b).float().square().mean().item(), 1e-20))


def record_patterns() -> Patterns:
    """What the presets do on one scene of each task, without a score."""
    pipeline = OmniGen2Pipeline.from_folder(WEIGHTS, device="cpu")
    records = {}
    for task in TASKS:
        scene = draw_scene(pipeline, task)
        for name, preset in PRESETS.items():
            done = run(pipeline, scene, preset.acceleration, preset.steps, preset.solver)[1]
            records[name, task] = [done.record]
    return Patterns(records, {}, "one run here")


def measure(results: Results, seconds: float) -> None:
    """Whole runs of the built-in model on the CPU, `seconds` in all, added to `results`."""
    pipeline = OmniGen2Pipeline.from_folder(WEIGHTS, device="cpu")
    scenes = {task: draw_scene(pipeline, task) for task in TASKS}
    for task, scene in scenes.items():
        _time(pipeline, task, scene, seconds / len(TASKS), results)
    for dtype in (torch.float32, torch.bfloat16):
        pipeline.transformer.to(dtype)
        for task, scene in scenes.items():
            _compare(pipeline, f"built-in model, {TITLES[task]}", scene, dtype, results)


def _time(pipeline: OmniGen2Pipeline, task: str, scene: Scene, seconds: float, results: Results) -> None:
    title, runs = f"built-in model, {TITLES[task]}", {}
    actions = {"plain path": partial(run_plainly, pipeline, scene, PLAIN.steps)}
    for name, preset in PRESETS.items():
        actions[name] = partial(run, pipeline, scene, preset.acceleration, preset.steps, preset.solver)
        runs[name] = actions[name]()[1]
    times = interleaved(actions, Effort(seconds), torch.device("cpu"))
    for name, some in times.items():
        steps = PLAIN.steps if name == "plain path" else PRESETS[name].steps
        done = runs.get(name, runs["exact"])
        computed = sum(work.kind != "omitted" for work in done.record)
        results.runs.append(RunRow(title, name, steps, computed, median(some), "whole run"))
    for name in PRESETS:
        ratio = estimate([times], lambda medians, name=name: medians["plain path"] / medians[name])
        results.claims.append(Claim(f"{title}: {name} against the plain path of {PLAIN.steps} steps", ratio))


def _compare(pipeline: OmniGen2Pipeline, title: str, scene: Scene, dtype: torch.dtype, results: Results) -> None:
    plain = run_plainly(pipeline, scene, PLAIN.steps)
    ours = run(pipeline, scene, Acceleration(), PLAIN.steps, "euler")[0]
    with torch.inference_mode():
        noise = psnr(*(pipeline.decode(latents) for latents in (ours, plain)))
    largest = Estimate.exact((ours - plain).abs().max().item())
    name = "fp32" if dtype is torch.float32 else "bf16"
    what = f"{title}, {name}: ours against the plain path after {PLAIN.steps} steps"
    if dtype is torch.float32:
        results.claims.append(Claim.judged(f"{what}, largest error of the latents", largest, FP32_BAR, ""))
        results.claims.append(Claim(f"{what}, PSNR", Estimate.exact(noise), " dB"))
    else:
        results.claims.append(Claim(f"{what}, largest error of the latents", largest, ""))
        results.claims.append(Claim.judged(f"{what}, PSNR", Estimate.exact(noise), BF16_BAR, " dB"))


def score_claims(patterns: Patterns, results: Results) -> None:
    """By how many points the presets change what is right, where that is known."""
    if not patterns.change:
        results.notes.append(
            "What the presets cost in right pictures is not known here: there are no kept results of the search of record, "
            "omnigen2_core/nano/logs/presets.jsonl, for them as they are. The pattern is that of one run."
        )
        return
    where = ""
    if patterns.on_other_weights:
        where = " (recorded on other weights)"
        results.notes.append(
            f"Patterns and changes in right pictures are those of {patterns.source}, which was recorded on other weights than those that "
            "the built-in model has now; `python dev.py presets` with an empty file of results records them anew."
        )
    limits = {"balanced": Bar(-1.0), "turbo": Bar(-3.0)}
    for (name, task), change in patterns.change.items():
        if name in limits:
            what = f"built-in model, {TITLES[task]}: change in right pictures with {name}{where}"
            results.claims.append(Claim.judged(what, change, limits[name], POINTS))
