"""What each smaller weight format costs in right pictures: the built-in model converted, and scored on the same problems.

    python dev.py score --formats --count 96 --json formats.json
    python dev.py score --formats q5_k q4_k

The problems, seeds and settings are those of `score`, so a format is compared with the model as it is stored picture by
picture. One format takes about a minute for 48 problems of each kind on two cores. With --json the verdicts are written
after every format, and formats that are in the file already, of the same weights and problems, are not drawn again. It takes
about 192 problems of each kind to tell no change from a point, and 480 where there is some.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from ..checkpoints import ModelFolder
from ..convert.convert import convert
from .problems import Scenes, draw_and_judge
from .processes import load_pipeline, start_processes
from .results import fingerprint
from .score import TASKS, figure, paired
from .world import DEFAULT_SIZE

logger = logging.getLogger(__name__)

STORED = "as stored"
"""The model folder's own weights, which formats are compared with."""
WITHIN = {name: 0.01 for name in ("q8_0", "int8", "fp8", "q6_k", "q5_k")}
"""By how much the rate of a format may lie below that of the stored weights. Smaller ones are free."""
WORLD = Scenes("score", DEFAULT_SIZE, {kind: {"edit": 1, "in_context": 2}.get(kind, 0) for kind in TASKS})

Verdicts = Mapping[str, str]
"""For each kind of problem "1" for each right picture and "0" for each wrong one."""


def measure_formats(
    model: Path, formats: Sequence[str], seed: int, count: int, processes: int, file: Path | None = None
) -> dict[str, Verdicts]:
    """The verdicts on the stored weights and on those converted to each of `formats`, kept in `file`.

    count: problems of each kind, rounded up to whole batches.
    """
    known = {"weights": fingerprint(ModelFolder(model)), "seed": seed, "count": WORLD.available("edit", count)}
    verdicts = _read(file, known)
    with start_processes(processes) as pool, tempfile.TemporaryDirectory(prefix="omnigen2-") as folder:
        for name in (STORED, *formats):
            if name in verdicts:
                continue
            started, source = time.monotonic(), model
            if name != STORED:
                source = Path(folder) / name
                convert(model, source, name)
            verdicts[name] = _draw(pool, source, seed, known["count"])
            logger.info("%s: %.0f s", name, time.monotonic() - started)
            if file:
                file.write_text(json.dumps({**known, "verdicts": verdicts}, indent=1) + "\n", encoding="utf-8")
    return {name: verdicts[name] for name in (STORED, *formats)}


def _read(file: Path | None, known: Mapping) -> dict[str, Verdicts]:
    """What the file has, if it is of the same weights and problems."""
    if file is None or not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    return found["verdicts"] if {name: found.get(name) for name in known} == known else {}


def _draw(pool: ProcessPoolExecutor, folder: Path, seed: int, count: int) -> dict[str, str]:
    parts = [(kind, start) for kind in WORLD.kinds for start in range(0, count, WORLD.batch)]
    drawn = pool.map(partial(draw_part, folder, seed), parts)
    verdicts = dict.fromkeys(WORLD.kinds, "")
    for (kind, _), right in zip(parts, drawn):
        verdicts[kind] += right
    return verdicts


def draw_part(folder: Path, seed: int, part: tuple[str, int]) -> str:
    """One batch of one kind, from problem `start` on, by the model in `folder` at the settings that suit it."""
    kind, start = part
    pipeline = load_pipeline(folder, "cpu")
    _, right = draw_and_judge(pipeline, WORLD.draw(pipeline, kind, seed, start, WORLD.batch), WORLD.size)
    return right


def compare(verdicts: Mapping[str, Verdicts], name: str) -> tuple[dict[str, float], dict[str, float]]:
    """Rate of right pictures of a format over all kinds, and its change from the stored weights on the same problems."""
    own, stored = ([letter == "1" for kind in WORLD.kinds for letter in verdicts[of][kind]] for of in (name, STORED))
    return figure(own), paired(own, stored)


def holds(verdicts: Mapping[str, Verdicts]) -> bool:
    """Whether every format that has a bar keeps to it, with the whole interval of its change."""
    return all(compare(verdicts, name)[1]["low"] >= -WITHIN[name] for name in verdicts if name in WITHIN)


def table(verdicts: Mapping[str, Verdicts]) -> str:
    """The formats, a line each."""
    lines = [f"{'':<12}" + "".join(f"{kind:>12}" for kind in WORLD.kinds) + f"{'all':>8}{'n':>6}{'change':>8}{'95 % interval':>18}{'bar':>6}"]
    for name, by_kind in verdicts.items():
        rate, change = compare(verdicts, name)
        rates = "".join(f"{100 * right.count('1') / len(right):>11.1f}%" for right in by_kind.values())
        interval = f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}"
        bar = f"{-100 * WITHIN[name]:.0f}" if name in WITHIN else ""
        noisy = name in WITHIN and change["rate"] >= -WITHIN[name] > change["low"]
        told = "" if name == STORED else f"{100 * change['rate']:>+8.1f}{interval:>18}{bar:>6}{'  too few to tell' if noisy else ''}"
        lines.append(f"{name:<12}{rates}{100 * rate['rate']:>7.1f}%{rate['n']:>6}{told}")
    return "\n".join(lines)
