"""Drawing every candidate's problems, batch by batch, in several processes or one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..acceleration.pattern import pattern_of
from ..acceleration.protocol import Run
from ..guidance import Guidance
from ..pipeline import OmniGen2Pipeline
from .candidates import PLAIN, Candidate
from .problems import World, draw_and_judge
from .processes import load_pipeline, start_processes
from .results import Batch, Results

SAME_PICTURE = 99.0
"""dB that stand for no difference at all."""


@dataclass(frozen=True)
class Stage:
    """A part of a search: these candidates, on so many problems of each kind of a world."""

    world: World
    candidates: tuple[Candidate, ...]
    count: int


@dataclass(frozen=True)
class Job:
    """One batch to draw. pictures: where those of the plain path are kept, for the others to be compared with."""

    model: Path
    pictures: Path
    world: World
    kind: str
    candidate: Candidate
    seed: int
    start: int
    count: int


Progress = Callable[[int, int], None]
"""Called with the batches that are done and all there are, in the part of a stage that is being drawn."""


def search(
    results: Results, stages: Iterable[Stage], model: Path, *, processes: int = 1, until: float = float("inf"),
    progress: Progress = lambda done, total: None,
) -> bool:  # fmt: skip
    """Draws what `results` does not have yet, the plain path first in each stage.

    until: the time, as `time.monotonic` gives it, from which no batch is begun. Returns whether everything was drawn.
    """
    with start_processes(processes) if processes > 1 else nullcontext() as pool:
        for stage in stages:
            for plain in (True, False):
                candidates = tuple(candidate for candidate in stage.candidates if (candidate == PLAIN) == plain)
                missing = list(jobs(results, replace(stage, candidates=candidates), model))
                done = 0
                for done, batch in enumerate(_draw(missing, pool, until), 1):
                    results.add(batch)
                    progress(done, len(missing))
                if done < len(missing):
                    return False
    return True


def jobs(results: Results, stage: Stage, model: Path) -> Iterator[Job]:
    """The batches of a stage that are not among the results. Those of one kind follow one another."""
    world = stage.world
    for candidate in stage.candidates:
        for kind in world.kinds:
            drawn = {batch.start for batch in results.batches(str(candidate), world.name, kind)}
            for start in range(0, world.available(kind, stage.count), world.batch):
                if start not in drawn:
                    count = min(world.batch, world.available(kind, stage.count) - start)
                    pictures = results.path.with_suffix("") / world.name / kind
                    yield Job(model, pictures, world, kind, candidate, results.header.seed, start, count)


def _draw(jobs: Sequence[Job], pool: Executor | None, until: float) -> Iterator[Batch]:
    """The batches as they are done, until the time is up."""
    if pool is None:
        for job in jobs:
            if time.monotonic() >= until:
                return
            yield draw_batch(job)
        return
    futures = [pool.submit(draw_batch, job) for job in jobs]
    for future in as_completed(futures):
        if not future.cancelled():
            yield future.result()
        if time.monotonic() >= until:
            for waiting in futures:
                waiting.cancel()


def draw_batch(job: Job) -> Batch:
    """Draws and judges one batch with the model's own guidance scales."""
    pipeline, candidate = _shifted(load_pipeline(job.model), job.candidate.shift), job.candidate
    problems = job.world.draw(pipeline, job.kind, job.seed, job.start, job.count)
    runs: list[Run] = []

    def make_run(steps: int) -> Run:
        runs.append(candidate.acceleration.run(steps))
        return runs[-1]

    profile = pipeline.profile
    started = time.monotonic()
    pictures, right = draw_and_judge(
        pipeline,
        problems,
        job.world.size,
        steps=candidate.steps,
        guidance=Guidance(profile.text_guidance, profile.image_guidance, candidate.guidance_range(profile)),
        solver=candidate.solver,
        make_run=make_run,
    )
    seconds = time.monotonic() - started
    return Batch(
        candidate=str(candidate),
        world=job.world.name,
        kind=job.kind,
        references=job.world.kinds[job.kind],
        start=job.start,
        right=right,
        psnr=_compare(job, pictures),
        pattern=pattern_of(runs[0].record),
        seconds=round(seconds, 2),
    )


def _shifted(pipeline: OmniGen2Pipeline, shift: float) -> OmniGen2Pipeline:
    """The same model with so many times its time shift."""
    profile = replace(pipeline.profile, shift_base=pipeline.profile.shift_base / shift)
    parts = (pipeline.transformer, pipeline.vae, pipeline.encoder, pipeline.tokenizer)
    return OmniGen2Pipeline(*parts, profile, pipeline.pixels)


def _compare(job: Job, pictures: Sequence[Image.Image]) -> tuple[float, ...]:
    """Keeps the pictures of the plain path; for others dB against those, nothing where they are gone."""
    files = [job.pictures / f"{number:05}.png" for number in range(job.start, job.start + job.count)]
    if job.candidate == PLAIN:
        job.pictures.mkdir(parents=True, exist_ok=True)
        for file, picture in zip(files, pictures):
            picture.save(file)
        return ()
    if not all(file.is_file() for file in files):
        return ()
    return tuple(psnr(picture, Image.open(file)) for file, picture in zip(files, pictures))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures of one size in dB, at most SAME_PICTURE."""
    difference = np.asarray(one.convert("RGB"), np.float64) - np.asarray(other.convert("RGB"), np.float64)
    power = float((difference**2).mean())
    return SAME_PICTURE if power == 0 else round(min(SAME_PICTURE, float(10 * np.log10(255**2 / power))), 1)
