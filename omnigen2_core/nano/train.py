"""Trains the nano model, one part after the other, and writes its folder. Every stage continues where it was stopped.

    python -m omnigen2_core.nano.train --runs runs

does all of these:

    python -m omnigen2_core.nano.train autoencoder --runs runs
    python -m omnigen2_core.nano.train decoder --runs runs
    python -m omnigen2_core.nano.train encoder --runs runs
    python -m omnigen2_core.nano.train transformer --runs runs --workers 2 --compile
    python -m omnigen2_core.nano.train export --runs runs --out OmniGen2-nano
    python -m omnigen2_core.nano.train draw --runs runs --out OmniGen2-nano
    python -m omnigen2_core.nano.train see --runs runs --workers 2
    python -m omnigen2_core.nano.train look --runs runs --workers 2
    python -m omnigen2_core.nano.train export --runs runs --out OmniGen2-nano
    python -m omnigen2_core.nano.train lora --runs runs --out OmniGen2-nano
    python -m omnigen2_core.nano.train mend --runs runs --out OmniGen2-nano --workers 2

The first export is what `draw` needs: it keeps pictures of the model's own, from which `look` learns to judge and
`mend` to follow corrections. After `mend` there are more of them, as the reflection loop draws them: `draw --hard`.

With `--start FOLDER` a stage begins at the weights of a model folder instead of at random, and parts that have no
checkpoint in `--runs` are taken from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Mapping, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import OmniGen2Error
from ..mllm import Qwen2_5_VL, build_mllm
from ..pipeline import OmniGen2Pipeline
from ..prompts import DEFAULT_NEGATIVE_PROMPT, generation_prompt
from ..training import Recipe, Trainer, Workers, add_lora, fast_dtype, save_lora
from ..transformer import OmniGen2Transformer
from ..vae import AutoencoderKL
from . import autoencoder, drawing, encoder, framed, looking, mending, seeing
from .drawn import HARD, MIXED, Drawn, draw_own, load_own
from .folder import WEIGHTS, write_folder
from .tokens import build_tokenizer

STAGES = ("autoencoder", "decoder", "encoder", "transformer", "export", "draw", "see", "look", "export", "lora", "mend")
DRAWN = 3600
"""Pictures that one run of the stage `draw` keeps."""


VISUAL = "visual."
"""What the names of the vision tower's weights begin with."""

FIRST = 8
"""Batches of pictures that tell, before a tower is taught, what the one that a text model knows makes of them."""

FOLDER_FILES = {
    "autoencoder": "vae/diffusion_pytorch_model.safetensors",
    "encoder": "mllm/model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
}


def trained(runs: Path, stage: str, start: Path | None = None) -> dict[str, Tensor]:
    """The averaged weights of a stage's last checkpoint, else those of the model folder `start`, in fp32.

    Raises OmniGen2Error when there are neither.
    """
    path = runs / stage / "checkpoint" / "averages.safetensors"
    if path.is_file():
        return load_file(path)
    if start is None or stage not in FOLDER_FILES:
        raise OmniGen2Error(f"The stage {stage!r} has no checkpoint in {path.parent}; train it first.")
    return {name: weight.float() for name, weight in load_file(start / FOLDER_FILES[stage]).items()}


def load_autoencoder(runs: Path, start: Path | None = None, *, best_decoder: bool = False) -> AutoencoderKL:
    """The trained autoencoder, fast to train on, with the scale of its latents measured."""
    vae = AutoencoderKL(autoencoder.CONFIG, operations=autoencoder.TrainingOperations).to(memory_format=torch.channels_last)
    weights = trained(runs, "autoencoder", start)
    if best_decoder and (runs / "decoder" / "checkpoint").is_dir():
        weights.update(trained(runs, "decoder"))
    vae.load_state_dict(weights)
    vae.config = dataclasses.replace(autoencoder.CONFIG, **autoencoder.latent_statistics(vae))
    return vae.requires_grad_(False)


def encoder_weights(runs: Path, start: Path | None = None, *, looks: bool = True) -> dict[str, Tensor]:
    """The encoder as its last stage left it (with `looks` the stage `look`), without what only its training needed."""
    weights = trained(runs, "encoder", start)
    for stage in ("see", "look") if looks else ("see",):
        if (runs / stage / "checkpoint").is_dir():
            weights.update(trained(runs, stage))
    weights = {name.removeprefix("mllm."): weight for name, weight in weights.items()}
    return {name: weight for name, weight in weights.items() if not name.startswith(("reader.", "eyes."))}


def train_autoencoder(runs: Path, recipe: Recipe, start: Path | None = None) -> Trainer:
    """The stage `autoencoder`: encoder and decoder together, to give pictures back."""
    vae = AutoencoderKL(autoencoder.CONFIG, operations=autoencoder.TrainingOperations).to(memory_format=torch.channels_last)
    if start:
        vae.load_state_dict(trained(runs, "autoencoder", start))
    loss = autoencoder.reconstruction_loss(vae)
    hidden = autoencoder.hidden_matrices(vae)
    return Trainer(dict(vae.named_parameters()), autoencoder.Pictures(), loss, recipe, runs / "autoencoder", hidden=hidden)


def train_decoder(runs: Path, recipe: Recipe, start: Path | None = None) -> Trainer:
    """The stage `decoder`: the decoder alone, on noisy latents of the autoencoder of `runs` or `start`."""
    vae = load_autoencoder(runs, start)
    parameters = {name: p for name, p in vae.named_parameters() if name.startswith("decoder.")}
    hidden = [name for name in autoencoder.hidden_matrices(vae) if name in parameters]
    loss = autoencoder.decoding_loss(vae)
    return Trainer(parameters, autoencoder.Pictures(hard=0.4), loss, recipe, runs / "decoder", hidden=hidden)


def train_encoder(runs: Path, recipe: Recipe, start: Path | None = None) -> Trainer:
    """The stage `encoder`: Qwen2.5-VL, with a `Reader` of its last hidden states that only training needs."""
    tokenizer = build_tokenizer()
    config = encoder.config(tokenizer)
    model = build_mllm(config, device="cpu", dtype=torch.float32)
    encoder.initialise(model)
    if start:
        model.load_state_dict(encoder_weights(runs, start))
    reader = encoder.Reader(config["vocab_size"])
    parameters = {f"mllm.{name}": p for name, p in model.named_parameters()}
    parameters.update({f"reader.{name}": p for name, p in reader.named_parameters()})
    loss = encoder.encoder_loss(model.train(), reader)
    hidden = encoder.hidden_matrices(model, "mllm.")
    return Trainer(parameters, encoder.Examples(tokenizer), loss, recipe, runs / "encoder", hidden=hidden)


def _build_encoder(runs: Path, start: Path | None, **options) -> Qwen2_5_VL:
    model = build_mllm(encoder.config(build_tokenizer()), device="cpu", dtype=torch.float32)
    weights = encoder_weights(runs, start, **options)
    tower = {name.removeprefix(VISUAL): weight for name, weight in weights.items() if name.startswith(VISUAL)}
    wide = seeing.widened(tower, model.visual.state_dict())
    model.load_state_dict({**weights, **{VISUAL + name: weight for name, weight in wide.items()}})
    return model


def _load_eyes(runs: Path) -> seeing.Eyes:
    eyes = seeing.Eyes()
    if (runs / "see" / "checkpoint").is_dir():
        seen = {name.removeprefix("eyes."): w for name, w in trained(runs, "see").items() if name.startswith("eyes.")}
        eyes.load_state_dict(seen)
    return eyes


def _teacher(held: Path) -> Qwen2_5_VL:
    return OmniGen2Pipeline.from_folder(held, device="cpu").encoder.requires_grad_(False)


def _fast(model: Qwen2_5_VL) -> Qwen2_5_VL:
    model.compute_dtype = fast_dtype()
    return model.to(fast_dtype())


def _first_views(drawn: Sequence[Drawn], recipe: Recipe) -> list[seeing.View]:
    rng = random.Random(recipe.seed)
    return [view for step in range(FIRST) for view in seeing.Sights(drawn).batch(step, rng)[0].views]


def train_see(runs: Path, recipe: Recipe, workers: Workers, start: Path | None = None, held: Path | None = None) -> Trainer:
    """The vision tower alone, on what its tokens show; they are to be what is plain to a text model that knows that of `held`."""
    model, eyes = _build_encoder(runs, start, looks=False), seeing.Eyes()
    parameters = {f"mllm.visual.{name}": p for name, p in model.visual.named_parameters()}
    parameters.update({f"eyes.{name}": p for name, p in eyes.named_parameters()})
    hidden = [name for name in encoder.hidden_matrices(model, "mllm.") if name in parameters]
    drawn = load_own(runs / "drawn")
    plain = None
    if held:
        known, views = _teacher(held), _first_views(drawn, recipe)
        seeing.fit_heads(eyes, known, views)
        plain = seeing.Plain(_fast(known), views)
    sights = seeing.Sights(drawn, rank=workers.rank, workers=workers.count)
    loss = seeing.seeing_loss(model.train(), eyes, plain)
    return Trainer(parameters, sights, loss, recipe, runs / "see", hidden=hidden, workers=workers)


def train_look(
    runs: Path, recipe: Recipe, workers: Workers, start: Path | None = None, held: Path | None = None, *, moves: str = "all"
) -> Trainer:
    """The whole encoder, its prompts' states held to those that it had, or to those of the model folder `held`; where the tower
    alone moves, its tokens to what is plain to a text model that knows that of `held`.

    `moves`: "eyes" for the vision tower alone, so that states of prompts without pictures stay what they are, "text" for all
    but the tower.
    """
    model, eyes = _build_encoder(runs, start, looks=False), _load_eyes(runs)
    teacher = _teacher(held) if held else _build_encoder(runs, start, looks=False).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(moves == "all" or name.startswith(VISUAL) == (moves == "eyes"))
    parameters = {f"mllm.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    parameters.update({f"eyes.{name}": p for name, p in eyes.named_parameters()})
    mix = {"all": looking.Mix(), "eyes": looking.SEEING_MIX, "text": looking.TEXT_MIX}[moves]
    drawn = load_own(runs / "drawn")
    plain = seeing.Plain(teacher, _first_views(drawn, recipe)) if held and moves == "eyes" else None
    examples = looking.Examples(build_tokenizer(), drawn, mix, rank=workers.rank, workers=workers.count)
    loss = looking.looking_loss(model.train(), eyes, teacher, plain)
    hidden = [name for name in encoder.hidden_matrices(model, "mllm.") if name in parameters]
    return Trainer(parameters, examples, loss, recipe, runs / "look", hidden=hidden, workers=workers)


def train_transformer(
    runs: Path, recipe: Recipe, workers: Workers, start: Path | None = None, *, compiled: bool = False, mends: bool = False
) -> Trainer:
    """The stage `transformer`, or, with `mends`, `mend`: a LoRA beside the weights of the model folder `start`."""
    tokenizer = build_tokenizer()
    mllm = _build_encoder(runs, start)
    mllm = _fast(mllm.requires_grad_(False))
    latents = drawing.Latents(load_autoencoder(runs, start))
    model = OmniGen2Transformer(drawing.CONFIG, operations=drawing.TrainingOperations)
    drawing.initialise(model)
    if start:
        model.load_state_dict(trained(runs, "transformer", start))
    parameters = add_lora(model, mending.RANK, targets=mending.LAYERS, seed=recipe.seed) if mends else dict(model.named_parameters())
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        for blocks in (model.context_refiner, model.noise_refiner, model.ref_image_refiner, model.layers):
            for block in blocks:
                block.compile(dynamic=True)
    empty = [tokenizer.encode(generation_prompt(text), add_special_tokens=False).ids for text in ("", DEFAULT_NEGATIVE_PROMPT)]
    drawn = load_own(runs / "drawn") if mends else ()
    mix = mending.MIX if mends else drawing.Mix()
    examples = drawing.Examples(tokenizer, mix, rank=workers.rank, workers=workers.count, drawn=drawn)
    loss = drawing.drawing_loss(model, mllm, latents, empty)
    hidden = () if mends else drawing.hidden_matrices(model)
    folder = runs / ("mend" if mends else "transformer")
    return Trainer(parameters, examples, loss, recipe, folder, hidden=hidden, workers=workers)


def export(runs: Path, out: Path, start: Path | None = None) -> None:
    """Writes the model folder from the checkpoints of all stages."""
    vae = load_autoencoder(runs, start, best_decoder=True)
    statistics: Mapping[str, float] = {name: getattr(vae.config, name) for name in ("scaling_factor", "shift_factor")}
    transformer, mllm = trained(runs, "transformer", start), encoder_weights(runs, start)
    write_folder(out, transformer=transformer, vae=vae.state_dict(), latent_statistics=statistics, mllm=mllm)


SINGLE = {
    "autoencoder": train_autoencoder,
    "decoder": train_decoder,
    "encoder": train_encoder,
}
"""Stages that one process trains."""
RECIPES = {
    "autoencoder": autoencoder.RECIPE,
    "decoder": autoencoder.DECODER_RECIPE,
    "encoder": encoder.RECIPE,
    "transformer": drawing.RECIPE,
    "see": seeing.RECIPE,
    "look": looking.RECIPE,
    "lora": framed.RECIPE,
    "mend": mending.RECIPE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="dev.py train", description="Train the built-in model from scratch.")
    parser.add_argument("stage", nargs="?", choices=sorted(set(STAGES), key=STAGES.index), help="one stage only; without it all of them, in this order")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints and logs")
    parser.add_argument("--steps", type=int, help="length of the run instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="which weights, examples and pictures are drawn (default 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes that train together, where a stage can")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks: minutes at first, then faster; with a LoRA beside them it does not pay")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the model folder (default: the built-in one, which is replaced): export writes it; draw, lora and mend use it, and lora and mend write into loras/ beside it")
    parser.add_argument("--start", type=Path, help="a model folder to begin with instead of random weights")
    parser.add_argument("--rate", type=float, default=1.0, help="times the recipe's learning rates")
    parser.add_argument("--held", type=Path, help="a model folder whose encoder's states look keeps to, instead of those that it begins with; where the vision tower alone moves, it learns to say what is plain to this one's text model")
    parser.add_argument("--moves", choices=("all", "eyes", "text"), default="all", help="what look trains: all, the vision tower (eyes), or all but it (text)")
    parser.add_argument("--hard", action="store_true", help="draw keeps pictures as the reflection loop draws them: four things, few steps, with the LoRA of mend")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hard and options.stage != "draw":
        parser.error("--hard is for the stage draw; name it.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for stage in [options.stage] if options.stage else STAGES:
        _run_stage(argparse.Namespace(**{**vars(options), "stage": stage}))
    return 0


def _run_stage(options: argparse.Namespace) -> None:
    if options.stage == "export":
        export(options.runs, options.out, options.start)
        return
    torch.manual_seed(options.seed)
    if options.stage == "draw":
        pipeline = OmniGen2Pipeline.from_folder(options.out)
        if options.hard:
            pipeline.load_lora(options.out.parent / "loras" / mending.FILE.name)
        draw_own(pipeline, options.runs / "drawn", DRAWN, options.seed, HARD if options.hard else MIXED)
        return
    recipe = RECIPES[options.stage]
    recipe = dataclasses.replace(
        recipe,
        seed=options.seed,
        steps=options.steps or recipe.steps,
        learning_rate=options.rate * recipe.learning_rate,
        muon_learning_rate=options.rate * recipe.muon_learning_rate,
    )
    if options.stage == "lora":
        framed.train_framed(options.out, options.runs, recipe, options.out.parent / "loras" / framed.FILE.name)
        return
    if options.stage in SINGLE:
        SINGLE[options.stage](options.runs, recipe, options.start).run()
        return
    _run_together(options, recipe)


def _run_together(options: argparse.Namespace, recipe: Recipe) -> None:
    torch.set_num_threads(1 if options.workers > 1 else torch.get_num_threads())
    options.runs.mkdir(parents=True, exist_ok=True)
    meeting, others = (options.runs / "workers.meeting").resolve(), []
    if options.workers > 1 and options.rank == 0:
        meeting.unlink(missing_ok=True)
        given = [
            options.stage, "--runs", str(options.runs), "--seed", str(options.seed), "--workers", str(options.workers),
            "--steps", str(recipe.steps), *(["--compile"] if options.compile else []),
            "--rate", str(options.rate), "--out", str(options.out), *(["--start", str(options.start)] if options.start else []),
            *(["--held", str(options.held)] if options.held else []), "--moves", options.moves,
        ]  # fmt: skip
        # Started as this process was: through a launcher, where that was needed.
        start = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]
        others = [subprocess.Popen([*start, *given, "--rank", str(rank)]) for rank in range(1, options.workers)]
    try:
        workers = Workers(options.rank, options.workers, meeting)
        if options.stage == "see":
            train_see(options.runs, recipe, workers, options.start, options.held).run()
        elif options.stage == "look":
            train_look(options.runs, recipe, workers, options.start, options.held, moves=options.moves).run()
        else:
            mends = options.stage == "mend"
            start = options.out if mends else options.start
            train_transformer(options.runs, recipe, workers, start, compiled=options.compile, mends=mends).run()
            if mends and workers.leads:
                save_lora(trained(options.runs, "mend"), options.out.parent / "loras" / mending.FILE.name)
    finally:
        for process in others:
            process.terminate() if sys.exc_info()[0] else process.wait()
    logging.getLogger(__name__).info("%s", json.dumps({"finished": str(options.runs / options.stage)}))


if __name__ == "__main__":
    raise SystemExit(main())
