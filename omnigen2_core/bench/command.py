"""Measure this code against ComfyUI's own OmniGen2 and against its own plain path.

    python dev.py bench
    python dev.py bench edit-1024x1024 three-1536x640
    python dev.py bench built-in formats
    python dev.py bench memory runs start
    python dev.py bench all --json bench.json --markdown bench.md

A CASE is a task (t2i, edit, three: none, one or three references) and a size; or `built-in`, whole runs of the built-in
model and of drawn ones of its size; or `formats`, the errors of storage formats; or `memory`, what the full-size model holds on cards of several sizes,
which are simulated; or `runs`, whether memory grows over a hundred runs of a real server; or `start`, how long it takes from
click to the first model call, against reading the files; or `all`. Without any, what fits half an hour on two cores, which
the last three are not part of. On a card, cases are whole runs of the full model, at least three rounds of every path: take
one with `--steps 20` where there are only ten minutes. The exit status is 0 if every bar that was measured holds, 1 if one
does not or is too noisy to tell, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from ..checkpoints import load_weights
from ..compiled import CompiledParts
from ..errors import OmniGen2Error
from ..nano import drawing
from ..parity.__main__ import usable_device
from ..transformer import OmniGen2Config, OmniGen2Transformer
from . import built_in, cases, formats, machine, memory, report, runs, start, whole
from .composed import NATIVE, OURS, Bench
from .inputs import Inputs, random_weights
from .patterns import Patterns, kept_patterns
from .reference import load_reference, reference_velocity
from .replay import Presets
from .results import Results
from .steps import one_of_each

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BUILT_IN, FORMATS, MEMORY, RUNS, START, ALL = "built-in", "formats", "memory", "runs", "start", "all"
OTHERS = (BUILT_IN, FORMATS, MEMORY, RUNS, START)
"""What is no task at a size."""
SMALL = [cases.Case(references, 128, 128) for references in cases.TASKS.values()]
"""Sizes for whole runs of a small model."""
SMALL_STEPS = 10


def main(arguments: Sequence[str], host: ModuleType) -> int:
    """The command. host: nodes/host/bench.py, imported where ComfyUI is."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    started = time.monotonic()
    versions = {"ComfyUI": host.version(), "attention": "PyTorch on both sides", "dtype": options.dtype}
    results = Results(machine.describe(options.device, versions))

    def write() -> str:
        """The tables so far, which are on the disk from here on whatever happens to the rest."""
        results.seconds = time.monotonic() - started
        results.peak_host_memory = machine.peak_host_memory()
        results.peak_device_memory = machine.peak_device_memory(options.device)
        tables = report.to_markdown(results)
        for path, text in ((options.json, report.to_json(results)), (options.markdown, tables)):
            if path is not None:
                path.write_text(text, encoding="utf-8")
        return tables

    try:
        with torch.inference_mode():
            for _ in _measured(options, host, results):
                write()
    except OmniGen2Error as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(f"\n{write()}")
    return 0 if results.all_hold else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE", help="what to measure; see above")
    parser.add_argument(
        "--device", type=usable_device, default=torch.device("cpu"), help="cpu (default) or cuda, which was never tried"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp32 on a CPU, bf16 on a card")
    parser.add_argument("--seconds", type=float, default=280.0, help="about how long to measure a case (default %(default)g)")
    parser.add_argument(
        "--steps", type=int, action="append", metavar="N", help="steps of whole runs, given once or more (default: 20 and 50)"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="PATH",
        help="a checkout of VectorSpaceLab/OmniGen2, to run as well where whole runs are: built-in, or cases on a card",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    options = parser.parse_args(arguments)
    names = options.names or [*(case.name for case in cases.IN_HALF_AN_HOUR), BUILT_IN, FORMATS]
    if ALL in names:
        names = [*(case.name for case in cases.ALL), *OTHERS]
    try:
        options.cases = [cases.parse(name) for name in names if name not in OTHERS]
    except ValueError as error:
        parser.error(str(error))
    options.names = names
    has_whole_runs = BUILT_IN in names or bool(options.cases) and options.device.type == "cuda"
    for name, given in (("--steps", options.steps), ("--reference", options.reference)):
        if given and not has_whole_runs:
            parser.error(
                f"{name} is for whole runs, and none of {' '.join(names)} is one: at real width a CPU only times layers. "
                f"Name {BUILT_IN} as well, or take a card with --device cuda."
            )
    if any(steps < 1 for steps in options.steps or ()):
        parser.error(f"--steps is {min(options.steps)}; give at least 1.")
    options.dtype = options.dtype or ("bf16" if options.device.type == "cuda" else "fp32")
    return options


def _measured(options: argparse.Namespace, host: ModuleType, results: Results) -> Iterator[None]:
    """Measures what was asked for, a part at a time."""
    if BUILT_IN in options.names:
        _say("whole runs of the built-in model")
        built_in.measure(results, options.seconds / 2)
        _say("whole runs of a model of its size")
        note = "the built-in model's width and depth, drawn weights"
        steps, seconds = options.steps or (SMALL_STEPS,), options.seconds / (2 * len(SMALL))
        yield from _whole(_small(), SMALL, steps, seconds, options, host, results, note)
        results.notes.append(
            "ComfyUI's own transformer cannot be given the built-in model: it knows no ffn_dim_multiplier. So it is "
            "compared on a model of the built-in one's width and depth without one, with drawn weights."
        )
    if options.cases:
        patterns = _patterns()
        built_in.score_claims(patterns, results)
        if options.device.type == "cuda":
            steps = options.steps or cases.STEPS
            yield from _whole(OmniGen2Config(), options.cases, steps, options.seconds, options, host, results, "4 B, drawn weights")
        else:
            yield from _composed(options, host, patterns, results)
    if FORMATS in options.names:
        _say("storage formats")
        formats.measure(results)
        yield
    if MEMORY in options.names:
        _say("memory of cards that are not there")
        memory.measure(host, results)
        yield
    if RUNS in options.names:
        _say(f"{runs.RUNS} runs in a row")
        runs.measure(host, results, host.BUILT_IN_LORA, on_card=options.device.type == "cuda")
        yield
    if START in options.names:
        _say("from click to the first model call")
        start.measure(host, results, on_card=options.device.type == "cuda")
        yield


def _composed(options: argparse.Namespace, host: ModuleType, patterns: Patterns, results: Results) -> Iterator[None]:
    config, dtype = OmniGen2Config(), DTYPES[options.dtype]
    inputs = Inputs(config, dtype, options.device)
    weights = random_weights(one_of_each(config), dtype, options.device)
    makers = {OURS: host.our_steps(config, weights, inputs), NATIVE: host.NativeSteps(config, weights, inputs)}
    bench = Bench(makers, patterns, options.device, dtype, options.seconds, config)
    for case in options.cases:
        _say(case.title)
        bench.measure(case, results)
        yield
    results.notes.append("On a card the tables are of whole runs of the full model; those are not measured yet.")
    if options.reference is not None:
        results.notes.append("The authors' code was run where whole runs are, and not at real width, where layers are timed.")


def _small() -> OmniGen2Config:
    return replace(drawing.CONFIG, ffn_dim_multiplier=None)


def _whole(
    config: OmniGen2Config,
    some: Sequence[cases.Case],
    steps: Sequence[int],
    seconds: float,
    options: argparse.Namespace,
    host: ModuleType,
    results: Results,
    note: str,
) -> Iterator[None]:
    """Whole runs of ours and its presets, of our plain path, of native and, with a checkout, of the authors'
    transformer, `seconds` for the paths of a case and as many for its presets."""
    dtype = DTYPES[options.dtype]
    inputs, weights = Inputs(config, dtype, options.device), random_weights(config, dtype, options.device)
    native = host.build_native(config, weights)
    ours, attention = _ours(config, weights, host), host.attention()
    starts = {
        whole.PLAIN_PATH: whole.start_plainly(ours, inputs),
        "ours": whole.start_ours(ours, inputs, attention),
        "native": whole.start_others(lambda case, branch: host.native_velocity(native, inputs, case, branch)),
    }
    if options.device.type == "cuda":
        theirs = torch.compile(host.build_native(config, weights), dynamic=True)
        # As OmniGen2 Compile does it.
        starts["ours compiled"] = whole.start_ours(ours, inputs, attention, CompiledParts())
        starts["native compiled"] = whole.start_others(
            lambda case, branch: host.native_velocity(theirs, inputs, case, branch)
        )
    if options.reference is not None:
        reference = load_reference(options.reference, config, weights)
        starts["reference"] = whole.start_others(reference_velocity(reference, inputs))
    contenders = whole.Contenders(starts, inputs, seconds, note)
    presets = Presets(ours, inputs, attention, _patterns(), seconds, note)
    for case in some:
        for count in steps:
            _say(f"{case.title}, {count} steps")
            contenders.measure(case, count, results)
            yield
        _say(f"{case.title}, presets")
        presets.measure(case, results)
        yield


def _patterns() -> Patterns:
    return kept_patterns() or built_in.record_patterns()


def _ours(config: OmniGen2Config, weights, host: ModuleType) -> OmniGen2Transformer:
    model = OmniGen2Transformer(config, operations=host.OPERATIONS, device="meta")
    load_weights(model, weights, "the drawn weights")
    return model.eval().requires_grad_(False)


def _say(what: str) -> None:
    print(f"-- {what} ...", flush=True)
